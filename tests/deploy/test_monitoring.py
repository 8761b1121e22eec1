"""Alert rules and the dashboard: Prometheus takes them, each alert fires, and every metric is one that is exported."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.chart import INSTALLATIONS, ROOT, named, render, tool
from helpers.serve import until
from helpers.support import Served

from ipt_triton import RestorationClient
from ipt_triton.export.serving.preflight import free_ports

FOLDER = ROOT / "deploy" / "monitoring"
RULES = FOLDER / "rules.yaml"
CASES = FOLDER / "rules_test.yaml"
METRIC = re.compile(r"\b(?:nv|ipt)_[a-z0-9_]+(?=\{|\[|\)| |$)")


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard_queries() -> list[str]:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return [target["expr"].replace("$namespace", ".*") for panel in panels for target in panel.get("targets", ())]


def scaler_query() -> str:
    (trigger,) = named(render(*INSTALLATIONS["cpu"]), "ScaledObject", "-server")["spec"]["triggers"]
    return str(trigger["metadata"]["query"])


def metrics_of(queries: list[str]) -> set[str]:
    """Names of ours and of Triton's that queries ask for, with both of the refusals' pattern."""
    text = "\n".join(queries).replace(
        '{__name__=~"nv_inference_request_(success|failure)"',
        "nv_inference_request_success{} nv_inference_request_failure{",
    )
    return set(METRIC.findall(text))


def asked_for() -> set[str]:
    kserve = yaml.safe_load((ROOT / "deploy" / "kserve" / "inference-service.yaml").read_text())
    (metric,) = kserve["spec"]["predictor"]["autoScaling"]["metrics"]
    queries = [rule["expr"] for rule in alerts()] + dashboard_queries()
    return metrics_of([*queries, metric["external"]["metric"]["query"]])


def test_promtool_takes_the_rules_and_fires_each_alert_when_it_shall() -> None:
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(CASES)]):
        result = subprocess.run([tool("promtool"), *command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_says_what_to_do() -> None:
    tests = yaml.safe_load(CASES.read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in alerts()}
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_promtool_takes_every_query_of_the_dashboard_and_of_the_scaler(tmp_path: Path) -> None:
    queries = [*dashboard_queries(), scaler_query()]
    rules = [{"record": f"query:number{i}", "expr": query} for i, query in enumerate(queries)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [tool("promtool"), "check", "rules", str(tmp_path / "rules.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_panels_of_the_dashboard_do_not_overlap_and_take_the_data_source_that_is_chosen() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for p in (panel["gridPos"] for panel in panels)
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(places) == len(set(places)) and max(x for x, _ in places) < 24
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels if panel["type"] != "row")


def test_the_installed_rules_are_these() -> None:
    installed = named(render(*INSTALLATIONS["gpu"]), "PrometheusRule", "-triton")["spec"]
    assert installed == yaml.safe_load(RULES.read_text())


def test_every_metric_of_the_gateway_that_is_asked_for_is_one_that_it_exports() -> None:
    measures = pytest.importorskip("ipt_triton.client.gateway.measures", reason="this tree has no gateway").Measures()
    for metric, labels in {
        "requests": ("GET", "/", "200"),
        "seconds": ("/",),
        "steps": ("decode", "sr_x2"),
        "pixels": ("sr_x2",),
        "photos": ("sr_x2", "restored"),
        "ended_workers": ("time",),
        "jobs": ("queued",),
        "worked": ("sr_x2",),
    }.items():
        getattr(measures, metric).labels(*labels)
    exported = set(re.findall(r"^(ipt_\w+)", measures.page().decode(), re.MULTILINE))
    assert {name for name in asked_for() if name.startswith("ipt_gateway_")} <= exported


@pytest.fixture
def prometheus(served: Served, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that has our rules and looks at the running server as at one of the chart's; returns its address."""
    target = urllib.parse.urlsplit(served.server.metrics_url)
    labels = {"namespace": "photos", "service": "ipt-ipt-triton-server"}
    scrape = {
        "job_name": "ipt-ipt-triton-server",
        "static_configs": [{"targets": [target.netloc], "labels": labels}],
    }
    intervals = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": intervals, "rule_files": [str(RULES)], "scrape_configs": [scrape]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (port,) = free_ports("127.0.0.1", 1, ())
    words = [
        tool("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}/api/v1/"
    process.terminate()
    process.wait()


def answer(address: str) -> Any:
    try:
        with urllib.request.urlopen(address, timeout=10) as page:
            return json.load(page)["data"]
    except OSError:  # not up yet
        return None


def value(prometheus: str, query: str) -> float | None:
    """The first number that a query gives; None for none."""
    found = answer(f"{prometheus}query?{urllib.parse.urlencode({'query': query})}")
    return float(found["result"][0]["value"][1]) if found and found["result"] else None


@pytest.mark.server
def test_a_real_prometheus_finds_in_a_running_server_all_that_rules_dashboard_and_scaler_ask_for(
    prometheus: str, client: RestorationClient
) -> None:
    restored = 'sum(nv_inference_request_success{job="ipt-ipt-triton-server",model="restore"})'
    until(lambda: value(prometheus, restored), 60, "the first look")
    before = value(prometheus, restored)
    client.restore(np.zeros((40, 60, 3), np.uint8), "sr_x2")
    until(lambda: (value(prometheus, restored) or 0) > (before or 0), 60, "a look after the photograph")

    exported = set(answer(f"{prometheus}label/__name__/values"))
    assert {name for name in asked_for() if not name.startswith("ipt_gateway_")} <= exported

    def evaluated() -> bool:
        groups = answer(f"{prometheus}rules")["groups"]
        states = [rule["health"] for group in groups for rule in group["rules"]]
        assert "err" not in states
        return len(states) == len(alerts()) and set(states) == {"ok"}

    until(evaluated, 60, "the rules")
    assert not answer(f"{prometheus}alerts")["alerts"]
    assert value(prometheus, scaler_query()) == 0.0
    unnamed = [query for query in dashboard_queries() if "gateway" not in query]
    until(lambda: all(value(prometheus, query) is not None for query in unnamed), 60, "every panel of the servers")
