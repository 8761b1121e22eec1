"""What checkov says of the chart and of the runtime for KServe; fetched by `make policies`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers.chart import INSTALLATIONS, render, tool

ALLOWED = {
    "CKV_K8S_15": "images have fixed tags, and registries may be away when a pod starts",
    "CKV_K8S_40": "the images' own user is 1000",
    "CKV_K8S_43": "digests are the registry's, which is not ours to know: a tag may be given with one",
}
"""Checks that fail, and why."""


@pytest.mark.slow
@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_nothing_fails_but_what_is_named_here_with_its_reason(installation: str, tmp_path: Path) -> None:
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(render(*INSTALLATIONS[installation])))
    command = [tool("checkov"), "--framework", "kubernetes", "--output", "json", "--skip-download"]
    result = subprocess.run(
        [*command, "--file", str(tmp_path / "objects.yaml")], capture_output=True, text=True, check=False
    )
    report = json.loads(result.stdout)
    assert report["summary"]["passed"] > 100 and report["summary"]["parsing_errors"] == 0
    assert {check["check_id"] for check in report["results"]["failed_checks"]} == set(ALLOWED)
