"""The OpenAPI description is true: generated requests find no failure, and a generated client restores a photo.

`GENERATED_REQUESTS` says how many requests there are for each route.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from helpers.gateway import listening, opened, picture

REQUESTS = os.environ.get("GENERATED_REQUESTS", "5")

CLIENT = """
import io, sys
from ipt_triton_client import Client
from ipt_triton_client.api.restore import restore_v1_restore_post as restore
from ipt_triton_client.models import BodyRestoreV1RestorePost as Body
from ipt_triton_client.types import File
body = Body(image=File(io.BytesIO(open(sys.argv[2], "rb").read()), "photo.png", "image/png"), task="sr_x2")
answer = restore.sync_detailed(client=Client(base_url=sys.argv[1]), body=body)
assert answer.status_code == 200, answer
open(sys.argv[3], "wb").write(answer.content)
"""


@pytest.mark.slow
def test_generated_requests_find_no_failure_of_the_gateway(tmp_path: Path):
    with listening(tmp_path / "gateway", requests=1000) as address:
        checks = ["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]
        limits = ["--max-examples", REQUESTS, "--seed", "1", "--phases", "examples,coverage,fuzzing", "--workers", "2"]
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "schemathesis.cli",
                "run",
                f"{address}/openapi.json",
                *checks,
                *limits,
                "--no-color",
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=3000,
        )
    print(run.stdout)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


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
