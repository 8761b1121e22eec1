"""The runtime for KServe: the same server as the chart's, with what KServe needs of it; and custom resources."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers.chart import INSTALLATIONS, ROOT, Object, named, pod_of, render, server_of
from helpers.toy_repository import ROUTER_CONFIG, ROUTER_MODEL, no_ports, write_model

from ipt_triton.export.serving import command
from ipt_triton.export.serving.health import Health

FOLDER = ROOT / "deploy" / "kserve"
RUNTIME = yaml.safe_load((FOLDER / "serving-runtime.yaml").read_text())
SERVICE = yaml.safe_load((FOLDER / "inference-service.yaml").read_text())
DEFINITIONS = sorted((ROOT / "build" / "crds").glob("*.yaml"))


def container() -> Object:
    (found,) = RUNTIME["spec"]["containers"]
    return found


def test_the_service_asks_for_this_runtime_and_for_what_it_offers() -> None:
    model = SERVICE["spec"]["predictor"]["model"]
    (format_,) = RUNTIME["spec"]["supportedModelFormats"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    assert model["modelFormat"].items() <= format_.items()
    assert [model["protocolVersion"]] == RUNTIME["spec"]["protocolVersions"]


def test_its_words_are_those_of_the_launcher(tmp_path: Path) -> None:
    assert container()["name"] == "kserve-container" and container()["command"][-1] == command.__name__
    write_model(tmp_path / "models", "restore", ROUTER_CONFIG, ROUTER_MODEL)
    words = [word.replace("/mnt/models", str(tmp_path / "models")) for word in container()["args"]]
    assert command.main([*words, "--check", *no_ports()]) == 0


def test_it_differs_from_the_charts_server_in_what_kserve_decides_alone() -> None:
    server = server_of(render(*INSTALLATIONS["cpu"]))
    for key in ("image", "env", "lifecycle", "resources"):
        assert container()[key] == server[key]
    assert set(server["args"]) < set(container()["args"])
    assert container()["securityContext"].items() >= server["securityContext"].items()
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = {**server[kind], "httpGet": {**server[kind]["httpGet"], "port": 8003}}
        assert container()[kind] == probe
    volumes = pod_of(named(render(*INSTALLATIONS["cpu"]), "Deployment", "-server"))["volumes"]
    assert RUNTIME["spec"]["volumes"] == [volume for volume in volumes if volume["name"] != "models"]
    assert [port["containerPort"] for port in container()["ports"]] == [8001, 8003]  # KServe's Service takes the first
    grace = pod_of(named(render(*INSTALLATIONS["cpu"]), "Deployment", "-server"))["terminationGracePeriodSeconds"]
    assert SERVICE["spec"]["predictor"]["terminationGracePeriodSeconds"] == grace
    (metric,) = SERVICE["spec"]["predictor"]["autoScaling"]["metrics"]
    scaled = named(render(*INSTALLATIONS["cpu"]), "ScaledObject", "-server")["spec"]
    assert metric["external"]["target"]["averageValue"] == scaled["triggers"][0]["metadata"]["threshold"]
    limits = (SERVICE["spec"]["predictor"]["minReplicas"], SERVICE["spec"]["predictor"]["maxReplicas"])
    assert limits == (scaled["minReplicaCount"], scaled["maxReplicaCount"])


@pytest.mark.parametrize("unready", [None, "stopping"])
def test_what_probes_ask_for_is_what_the_launcher_answers(unready: str | None) -> None:
    health = Health("127.0.0.1", 0, lambda: unready, lambda: b"")
    answers = {}
    try:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            connection = http.client.HTTPConnection("127.0.0.1", health.port, timeout=5)
            connection.request("GET", container()[kind]["httpGet"]["path"])
            answers[kind] = connection.getresponse().status
            connection.close()
    finally:
        health.close()
    ready = 503 if unready else 200
    assert answers == {"startupProbe": ready, "readinessProbe": ready, "livenessProbe": 200}


def closed(schema: Any) -> Any:
    """A schema that also refuses fields that it does not know, unless it says that others may be there.

    Its patterns are left out: they are written for Go.
    """
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {}
    inner = {
        key: {name: closed(entry) for name, entry in value.items()} if key == "properties" else closed(value)
        for key, value in schema.items()
        if key != "pattern" or isinstance(value, dict)
    }
    if "properties" in inner and not inner.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner


@pytest.mark.skipif(not DEFINITIONS, reason="no definitions of custom resources are in build/crds")
def test_custom_resources_fit_their_definitions() -> None:
    schemas = {}
    for path in DEFINITIONS:
        definition = yaml.safe_load(path.read_text())["spec"]
        for version in definition["versions"]:
            kind = (f"{definition['group']}/{version['name']}", definition["names"]["kind"])
            schemas[kind] = closed(version["schema"]["openAPIV3Schema"])
    checked = set()
    for found in [RUNTIME, SERVICE, *(entry for flags in INSTALLATIONS.values() for entry in render(*flags))]:
        if (schema := schemas.get((found["apiVersion"], found["kind"]))) is not None:
            schema["properties"]["metadata"] = {}
            jsonschema.validate(found, schema)
            checked.add(found["kind"])
    assert checked == {"ScaledObject", "ServiceMonitor", "PrometheusRule", "ServingRuntime", "InferenceService"}
