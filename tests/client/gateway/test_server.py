"""The gateway in front of a real server: what comes out is what the client gets, and progress and restarts are real."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from helpers.serve import until
from helpers.support import Served, read_image
from PIL import Image

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.fronted import Fronted

PAGE = Path(__file__).parents[3] / "docs" / "http.md"


@pytest.fixture(scope="module")
def fronted(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    with Fronted(tmp_path_factory.mktemp("fronted"), served.server.grpc_url) as gateway:
        yield gateway


CASES = ({"task": "sr_x2"}, {"task": "derain,sr_x2", "strength": 0.5}, {"task": "0", "width": 75})


def photo(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(read_image("kitten")[:height, :width]).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.server
@pytest.mark.parametrize("options", CASES)
def test_a_photo_comes_out_as_the_client_gets_it(
    fronted: Fronted, client: RestorationClient, options: dict[str, object]
) -> None:
    sent = photo(60, 50)
    answer = httpx2.post(f"{fronted.address}/v1/restore", files={"image": sent}, data=options, timeout=120)
    wishes = {name: value for name, value in options.items() if name != "task"}
    expected = client.restore(pixels(sent), str(options["task"]), **wishes)  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels(answer.content), expected)


@pytest.mark.server
def test_progress_comes_from_the_server(fronted: Fronted) -> None:
    made = httpx2.post(f"{fronted.address}/v1/jobs?task=denoise_30", content=photo(480, 420), timeout=120).json()
    told = []
    with httpx2.stream("GET", fronted.address + made["links"]["events"], timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                told.append(json.loads(line.removeprefix("data: ")))
    done = [job["tiles_done"] for job in told]
    assert done == sorted(done) and told[-1]["state"] == "done" and told[-1]["tiles"] == done[-1] > 0


@pytest.mark.server
def test_it_is_ready_with_a_server(fronted: Fronted) -> None:
    until(lambda: httpx2.get(f"{fronted.address}/readyz").status_code == 200, 60, "ready")


@pytest.mark.server
def test_a_gateway_that_was_killed_goes_on_with_its_jobs(served: Served, tmp_path: Path) -> None:
    with Fronted(tmp_path, served.server.grpc_url) as gateway:
        address = f"{gateway.address}/v1/jobs?task=sr_x2"
        jobs = [httpx2.post(address, content=photo(300, 200 + n), timeout=60).json() for n in range(3)]
        os.kill(gateway.process.pid, signal.SIGKILL)
        gateway.process.wait()
    with Fronted(tmp_path, served.server.grpc_url) as gateway:
        for number, job in enumerate(jobs):
            address = gateway.address + job["links"]["self"]
            until(lambda address=address: httpx2.get(address).json()["state"] == "done", 120, "done")
            assert pixels(httpx2.get(f"{address}/result").content).shape == (400 + 2 * number, 600, 3)


@pytest.mark.server
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_of_the_page_run(fronted: Fronted, tmp_path: Path) -> None:
    Image.fromarray(read_image("kitten")[:40, :60]).save(tmp_path / "a.jpg")
    Image.fromarray(read_image("kitten")[:40, :60]).save(tmp_path / "a.png")
    place = fronted.address.removeprefix("http://")
    lines = re.findall(r"^    (curl .*)$", PAGE.read_text(), re.MULTILINE)
    job = ""
    for line in lines:
        command = line.replace("localhost:8080", place)
        run = subprocess.run(
            ["bash", "-euc", command.replace("curl ", "curl -sS --fail-with-body ")],
            cwd=tmp_path,
            env={**os.environ, "ID": job, "KEY": "any"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, f"{command}: {run.stdout} {run.stderr}"
        job = json.loads(run.stdout)["id"] if command.endswith("/v1/jobs") else job
    assert len(lines) == 7 and Image.open(tmp_path / "b.jpg").size == (120, 80)
    assert Image.open(tmp_path / "b.webp").format == "WEBP"
