"""`ipt-gateway` as a command: closed by default, patient with nobody, gone without a trace."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import httpx2
import pytest
from helpers.gateway import listening

from ipt_triton.benchmarks.fronted import Fronted
from ipt_triton.client.gateway import command, serving
from ipt_triton.client.gateway.settings import Settings

NOBODY = "127.0.0.1:1"


def test_it_does_not_listen_to_other_machines_without_keys(capsys: pytest.CaptureFixture[str]):
    assert command.main(["--host", "0.0.0.0"]) == 2
    assert "--without-keys" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_of_another_gateway_is_refused(tmp_path: Path):
    with Fronted(tmp_path, NOBODY):
        second = Fronted(tmp_path / "second", NOBODY, ["--folder", str(tmp_path / "files")])
        assert second.process.wait(60) == 2 and "another gateway uses" in second.output


def test_flags_become_settings():
    args = command._parser().parse_args(["--max-upload", "5", "--max-megapixels", "2.5", "--retention", "90"])
    settings = command._settings(args)
    assert (settings.max_upload_bytes, settings.max_pixels, settings.retention_s) == (5 * 2**20, 2_500_000, 90.0)
    assert settings.slots == Settings().slots


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_is_known(host: str):
    assert serving.is_loopback(host) and not serving.is_loopback("192.168.1.1")


IMPATIENT = """
import sys
from dataclasses import replace
from ipt_triton.benchmarks.fronted import Fronted
from ipt_triton.client.gateway import command, serving
serving.HEAD_S, made = 0.5, command._settings
command._settings = lambda args: replace(made(args), idle_s=0.5)
sys.exit(command.main())
"""


@pytest.mark.slow
def test_slow_senders_are_ended_and_others_served(tmp_path: Path):
    with Fronted(tmp_path, NOBODY, program=(sys.executable, "-c", IMPATIENT)) as gateway:
        host, port = gateway.address.removeprefix("http://").split(":")
        head = f"POST /v1/restore?task=derain HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n"
        silent, half, slow = (socket.create_connection((host, int(port)), 10) for _ in range(3))
        half.sendall(head.encode())
        slow.sendall(f"{head}\r\nabc".encode())
        assert httpx2.get(f"{gateway.address}/healthz").status_code == 200
        assert silent.recv(1) == half.recv(1) == b""
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        for connection in (silent, half, slow):
            connection.close()


@pytest.mark.slow
def test_who_still_sends_a_body_that_is_refused_hears_why(tmp_path: Path):
    with listening(tmp_path, max_upload_bytes=1000) as address:
        host, port = address.removeprefix("http://").split(":")
        for _ in range(5):
            with socket.create_connection((host, int(port)), 10) as connection:
                length = 2**22
                head = f"POST /v1/restore?task=derain HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
                connection.sendall(head.encode() + bytes(length))
                assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_requests_are_logged_as_lines_of_json_without_the_ids_of_jobs(tmp_path: Path):
    with Fronted(tmp_path, NOBODY) as gateway:
        httpx2.get(f"{gateway.address}/v1/jobs/secret-id", headers={"X-Request-Id": "my-request"})
    lines = [json.loads(line) for line in gateway.output.splitlines() if line.startswith("{")]
    (answered,) = [line for line in lines if line["message"] == "answered"]
    assert (answered["request_id"], answered["route"], answered["status"]) == ("my-request", "/v1/jobs/{id}", 404)
    assert "secret-id" not in gateway.output and gateway.process.returncode == 0


@pytest.mark.slow
def test_without_a_server_it_runs_is_not_ready_and_says_so(tmp_path: Path):
    with Fronted(tmp_path, NOBODY) as gateway:
        assert httpx2.get(f"{gateway.address}/healthz").status_code == 200
        ready = httpx2.get(f"{gateway.address}/readyz")
        assert ready.status_code == 503 and ready.json()["retry_after_s"]
