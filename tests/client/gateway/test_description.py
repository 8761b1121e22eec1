"""The OpenAPI description is true: generated requests find no failure, and a generated client restores a photo.

`GENERATED_REQUESTS` says how many requests there are for each route at most.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx2
import pytest
from helpers.gateway import listening, opened, picture

REQUESTS = os.environ.get("GENERATED_REQUESTS", "5")
HOOKS = {
    "SCHEMATHESIS_HOOKS": "helpers.generated_requests",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
}
REQUEST = r'ipt_gateway_requests_total{.*route="(.*)",status="(.*)"} (\S+)'
JOB = "/v1/jobs/{id}"
WORKED = (
    *(("/v1/restore", 200), ("/v1/jobs", 202), (JOB, 200), (JOB, 204)),
    *((f"{JOB}/{part}", 200) for part in ("events", "result", "before", "after")),
)

CLIENT = """
import io, sys
from ipt_triton_client import Client
from ipt_triton_client.api.restore import restore
from ipt_triton_client.models import PhotoForm
from ipt_triton_client.types import File
body = PhotoForm(image=File(io.BytesIO(open(sys.argv[2], "rb").read()), "photo.png", "image/png"), task="sr_x2")
answer = restore.sync_detailed(client=Client(base_url=sys.argv[1]), body=body)
assert answer.status_code == 200, answer
open(sys.argv[3], "wb").write(answer.content)
"""


@pytest.mark.slow
def test_generated_requests_find_no_failure_of_the_gateway(tmp_path: Path):
    seen: Counter[tuple[str, int]] = Counter()
    with listening(tmp_path / "gateway", requests=1000, retention_s=60) as address:
        checks = ["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]
        limits = ["--max-examples", REQUESTS, "--seed", "1", "--phases", "examples,coverage,fuzzing", "--workers", "2"]
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", *checks, *limits]
        run = subprocess.run(
            [*command, "--no-color"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **HOOKS},
            timeout=7200,
        )
        for route, status, number in re.findall(REQUEST, httpx2.get(f"{address}/metrics").text):
            seen[route, int(status)] += int(float(number))
    print(run.stdout)
    print(*(f"{route} {status}: {number}" for (route, status), number in sorted(seen.items())), sep="\n")
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert not [route for route, status in seen if status >= 500]
    for route, status in WORKED:
        assert seen[route, status], f"no request was good enough for {route}"


@pytest.mark.slow
def test_a_generated_client_restores_a_photo(tmp_path: Path):
    with listening(tmp_path / "gateway") as address:
        (tmp_path / "openapi.json").write_text(json.dumps(httpx2.get(f"{address}/openapi.json").json()))
        command = ["generate", "--path", "openapi.json", "--meta", "none", "--output-path", "ipt_triton_client"]
        subprocess.run([sys.executable, "-m", "openapi_python_client", *command], cwd=tmp_path, check=True, timeout=120)
        (tmp_path / "photo.png").write_bytes(picture())
        arguments = [address, "photo.png", "restored.png"]
        subprocess.run([sys.executable, "-c", CLIENT, *arguments], cwd=tmp_path, check=True, timeout=120)
    assert opened((tmp_path / "restored.png").read_bytes()).size == (120, 80)
