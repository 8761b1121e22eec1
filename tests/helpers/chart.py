"""The Helm chart as the real helm renders it, and the tools that look at what comes out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "ipt-triton"
GPU = ("--values", str(CHART / "values-gpu.yaml"))
WATCHED = (
    "--set=gateway.keysSecret=keys,autoscaling.enabled=true",
    "--set=monitoring.serviceMonitors=true,monitoring.rules=true",
)
BUCKET = "--set=repository.kind=objectStorage,repository.objectStorage.source=s3:bucket/models"
INSTALLATIONS = {
    "cpu": WATCHED,
    "gpu": (*WATCHED, *GPU),
    "traced": (*WATCHED, "--set=traces.url=http://collector.monitoring:4318"),
    "bucket": (*WATCHED, *GPU, BUCKET, "--set=autoscaling.engine=adapter,gateway.replicas=2"),
}
"""Flags of helm by the name of what they install."""

Object = dict[str, Any]


def tool(name: str) -> str:
    """Path of a program that `make test` unpacks, or of an installed one; skips the test where there is none."""
    folders = [ROOT / "build" / "tools", ROOT / "build" / "checkov" / "bin", Path(sys.executable).parent]
    found = shutil.which(name, path=os.pathsep.join(map(str, folders))) or shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}: make build/tools fetches it, make policies fetches checkov")
    return found


def helm(*flags: str) -> subprocess.CompletedProcess[str]:
    """`helm template` of the chart as the release `ipt` in the namespace `photos`."""
    command = [tool("helm"), "template", "ipt", str(CHART), "--namespace", "photos", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@cache
def render(*flags: str) -> tuple[Object, ...]:
    """The objects that an installation with these flags of helm makes."""
    result = helm(*flags)
    assert result.returncode == 0, result.stderr
    return tuple(found for found in yaml.safe_load_all(result.stdout) if found)


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [found for found in objects if found["kind"] in kinds]


def named(objects: tuple[Object, ...], kind: str, ending: str) -> Object:
    """The one object of a kind whose name ends so."""
    (found,) = (entry for entry in of_kind(objects, kind) if entry["metadata"]["name"].endswith(ending))
    return found


def workloads(objects: tuple[Object, ...]) -> list[Object]:
    return of_kind(objects, "Deployment", "Job")


def pod_of(workload: Object) -> Object:
    return workload["spec"]["template"]["spec"]


def containers_of(workload: Object) -> Iterator[Object]:
    pod = pod_of(workload)
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def server_of(objects: tuple[Object, ...]) -> Object:
    """The server's container."""
    (container,) = pod_of(named(objects, "Deployment", "-server"))["containers"]
    return container


def quantity(text: str | int) -> float:
    """Kubernetes' quantity as a number."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    found = next((unit for unit in sorted(units, key=len, reverse=True) if str(text).endswith(unit)), "")
    return float(str(text).removesuffix(found)) * units.get(found, 1)
