"""Values of the chart: each is described with its default, allowed by the schema, and changes what is installed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helpers.chart import BUCKET, CHART, GPU, ROOT, WATCHED, helm

ROW = re.compile(r"^\| `([\w.]+)` \| `(.+?)` \|", re.MULTILINE)
WHOLE = ("requests", "limits", "gpus", "annotations", "matchLabels", "labels", "nodeSelector", "affinity")
"""Values that are given as a whole."""
INSTALLATIONS = (
    (*WATCHED, *GPU, "--set=repository.objectStorage.source=s3:elsewhere"),
    (*WATCHED, *GPU, "--set=autoscaling.engine=adapter,gateway.jobs.persistent=true"),
    (*WATCHED, *GPU, BUCKET, "--set=monitoring.gatewayKey.secret=s"),
    ("--set=gateway.keysSecret=keys,traces.url=http://collector:4318",),
    ("--set-json=gateway.withoutKeys=true",),
)
"""In one of them each value shows."""
OTHERS: dict[str, Any] = {
    "server.image.pullPolicy": "Always",
    "engines.image.pullPolicy": "Always",
    "gateway.image.pullPolicy": "Always",
    "balancer.image.pullPolicy": "Always",
    "repository.objectStorage.image.pullPolicy": "Always",
    "repository.kind": "objectStorage",
    "repository.claim.accessModes": ["ReadOnlyMany"],
    "autoscaling.engine": "adapter",
    "autoscaling.prometheus": "http://elsewhere:9090",
    "traces.url": "http://elsewhere:4318",
    "traces.share": 0.1,
    "gateway.service.type": "NodePort",
    "gateway.replicas": 2,
    "gateway.withoutKeys": False,
    "imagePullSecrets": [{"name": "registry"}],
    "engines.gpus": [{"name": "other", "nodeSelector": {"gpu": "other"}}],
    "networkPolicy.callers": [{"podSelector": {"matchLabels": {"a": "b"}}}],
    "networkPolicy.monitoring": [{"podSelector": {"matchLabels": {"a": "b"}}}],
    "networkPolicy.collector": [{"podSelector": {"matchLabels": {"a": "b"}}}],
}
"""Another value than the default where a guess by its type would not be allowed."""


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    name = path.rpartition(".")[2]
    if isinstance(values, dict) and values and name not in WHOLE:
        for key, value in values.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, values


VALUES = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))


def another(path: str, value: Any) -> Any:
    """A value that is allowed and not the default."""
    if path in OTHERS:
        return OTHERS[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, list):
        return ["--word"] if path.endswith("rguments") else [{"key": "other"}]
    if isinstance(value, dict):
        return {"cpu": "3", "memory": "9Gi"} if value else {"other": "thing"}
    return "7Gi" if re.fullmatch(r"\d+Gi", value) else "other"


def test_the_page_has_a_row_with_the_default_of_every_value_and_no_other() -> None:
    rows = ROW.findall((ROOT / "docs" / "kubernetes.md").read_text())
    assert {name: json.loads(default) for name, default in rows} == VALUES
    assert len(rows) == len(VALUES)


def test_what_differs_on_gpus_are_values_that_there_are() -> None:
    differing = dict(leaves(yaml.safe_load((CHART / "values-gpu.yaml").read_text())))
    assert set(differing) <= set(VALUES)
    assert all(value != VALUES[path] for path, value in differing.items())


@pytest.mark.slow
def test_every_value_changes_what_is_installed_or_is_named_by_a_refusal() -> None:
    plain = [helm(*flags).stdout for flags in INSTALLATIONS]
    assert all(plain)
    without = []
    for path, value in VALUES.items():
        for before, flags in zip(plain, INSTALLATIONS, strict=True):
            after = helm(*flags, f"--set-json={path}={json.dumps(another(path, value))}")
            if after.stdout != before if after.returncode == 0 else path in after.stderr:
                break
        else:
            without.append(path)
    assert not without
