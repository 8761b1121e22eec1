"""The launcher with a real Triton server on toy models: starts, checks, warm-up, and every way to end."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from helpers.serve import Command, descendants, inputs_of, named, parent_of, until
from helpers.toy_repository import ROUTER_CONFIG, ROUTER_MODEL, no_ports, write_model

from ipt_triton import RestorationClient
from ipt_triton.export.parts.one_core import core
from ipt_triton.export.serving import preflight, supervise
from ipt_triton.export.serving.command import main
from ipt_triton.export.serving.errors import (
    CheckError,
    InterruptedStartError,
    ServeError,
    ServerEndedError,
    WarmUpError,
)
from ipt_triton.export.serving.server import TritonServer

HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # a client's beginning, empty SETTINGS
PART_CONFIG = """
name: "%s" backend: "python" max_batch_size: 0
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ] output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
ENSEMBLE_CONFIG = """
name: "ipt_derain" platform: "ensemble" max_batch_size: 0
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ] output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
ensemble_scheduling { step [
  { model_name: "head" model_version: -1 input_map { key: "X" value: "X" } output_map { key: "Y" value: "F" } },
  { model_name: "tail" model_version: -1 input_map { key: "X" value: "F" } output_map { key: "Y" value: "Y" } } ] }
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository of a toy router alone: it enlarges by repetition."""
    write_model(tmp_path / "models", "restore", ROUTER_CONFIG, ROUTER_MODEL)
    return tmp_path / "models"


@pytest.fixture(scope="class")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("shared")
    write_model(folder / "models", "restore", ROUTER_CONFIG, ROUTER_MODEL)
    flags = ["--log-info=true", "--grpc-max-connection-age=1000"]  # milliseconds
    with TritonServer(folder / "models", http_port=0, log_path=folder / "log", extra_args=flags) as running:
        yield running


def restore(server: TritonServer, image: np.ndarray, task: int) -> np.ndarray:
    inputs = inputs_of(image, task)
    with triton.InferenceServerClient(server.grpc_url) as client:
        outputs = [triton.InferRequestedOutput("RESTORED")]
        restored = client.infer("restore", inputs, outputs=outputs).as_numpy("RESTORED")
    assert restored is not None
    return restored


@pytest.mark.server
class TestARunningServer:
    def test_a_started_server_has_warmed_up_every_task_and_answers_at_its_urls(self, server: TritonServer) -> None:
        assert [(task.id, task.name, task.scale) for task in server.tasks] == [(0, "sr_x2", 2), (3, "derain", 1)]
        image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
        np.testing.assert_array_equal(restore(server, image, 3), image)
        assert restore(server, image, 0).shape == (10, 14, 3)
        with urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready") as answer:
            assert answer.status == 200
        with urllib.request.urlopen(server.metrics_url) as answer:
            page = answer.read().decode()
        # Two warm-up requests and the two above.
        assert 'nv_inference_request_success{model="restore",version="1"} 4' in page

    def test_python_models_run_in_our_environment(self, server: TritonServer) -> None:
        assert server._log_path is not None
        assert f"stub of {sys.prefix}" in server._log_path.read_text()

    def test_flags_after_the_launchers_own_win(self, server: TritonServer) -> None:
        assert server._log_path is not None
        assert "Started GRPCInferenceService" in server._log_path.read_text()  # --log-info is false by default

    def test_only_loopback_is_bound_and_the_dangerous_apis_are_closed(self, server: TritonServer) -> None:
        port = int(server.grpc_url.rpartition(":")[2])
        lines = [
            line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()
        ]
        listening = [fields[1] for fields in lines if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")]
        # 127.0.0.1 in the kernel's byte order; gRPC binds the IPv6 form of the same address.
        assert listening
        assert all(address.rpartition(":")[0].endswith("0100007F") for address in listening)

        connection = http.client.HTTPConnection(server.http_url)
        for path in (
            "v2/repository/index",
            "v2/repository/models/restore/unload",
            "v2/systemsharedmemory/region/r/register",
        ):
            connection.request("POST", f"/{path}", "{}")
            answer = connection.getresponse()
            assert (answer.status, b"restricted" in answer.read()) == (403, True), path
        with triton.InferenceServerClient(server.grpc_url) as client:
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                client.unload_model("restore")
            assert client.get_model_config("restore").config.parameters["tasks"].string_value
            assert client.get_inference_statistics("restore").model_stats

    def test_the_key_of_the_closed_apis_can_be_read_and_not_be_sent(self, server: TritonServer) -> None:
        (process,) = named(set(server.pids), "tritonserver")
        key = re.findall(r"launcher=([0-9a-f]+\s*)\0", Path(f"/proc/{process}/cmdline").read_text())[0]
        assert key.endswith("\n")
        for tried in (key, key.strip(), f"{key.strip()}%0a", f"{key.strip()}\\n"):
            head = (
                f"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nlauncher: {tried}\r\nContent-Length: 2\r\n\r\n{{}}"
            )
            host, _, port = server.http_url.partition(":")
            with socket.create_connection((host, int(port)), 5) as connection:
                connection.sendall(head.encode())
                assert b" 200 " not in connection.recv(100)
            headers = {"triton-grpc-protocol-launcher": tried}
            with (
                triton.InferenceServerClient(server.grpc_url) as client,
                pytest.raises(Exception, match=r"restricted|etadata"),
            ):
                client.get_model_repository_index(headers=headers)

    def test_an_old_connection_is_ended_and_clients_go_on(self, server: TritonServer) -> None:
        image = np.zeros((3, 3, 3), np.uint8)
        host, _, port = server.grpc_url.partition(":")
        started, heard = time.monotonic(), b""
        with socket.create_connection((host, int(port)), 10) as idle, RestorationClient(server.grpc_url) as client:
            idle.sendall(HTTP2)
            idle.setblocking(False)
            while time.monotonic() < started + 20:
                client.restore(image, "derain")
                with contextlib.suppress(BlockingIOError):
                    if not (said := idle.recv(1000)):
                        break
                    heard += said
                    if said.endswith(bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)):  # PING: are you there?
                        idle.sendall(bytes([0, 0, 8, 6, 1, 0, 0, 0, 0]) + bytes(8))
        assert 0.8 < time.monotonic() - started < 10
        assert bytes([0, 0, 8, 7]) in heard  # GOAWAY

    def test_two_thousand_silent_connections_keep_nobody_out(self, server: TritonServer) -> None:
        host, _, port = server.grpc_url.partition(":")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 3000:
            pytest.skip(f"this user may have {hard} files open, and the test needs 3000")
        with contextlib.ExitStack() as silent:
            silent.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
            for number in range(2000):
                connection = silent.enter_context(socket.create_connection((host, int(port)), 10))
                if number % 2:
                    connection.sendall(HTTP2)
            with RestorationClient(server.grpc_url, retries=0, timeout=60) as client:
                assert client.restore(np.zeros((3, 3, 3), np.uint8), "derain").shape == (3, 3, 3)

    def test_two_servers_stand_side_by_side_and_one_ends_without_harm_to_the_other(
        self, server: TritonServer, repository: Path
    ) -> None:
        with TritonServer(repository) as second:
            processes, prefix = second.pids, second.region_prefix
            assert len({server.http_url, server.grpc_url, second.metrics_url, second.grpc_url}) == 4
            assert list(supervise.SHARED_MEMORY.glob(f"{prefix}*"))
            second.stop(grace=0)
            assert not second.running
        assert [process for process in processes if parent_of(process) is not None] == []
        assert not list(supervise.SHARED_MEMORY.glob(f"{prefix}*"))
        assert restore(server, np.zeros((3, 3, 3), np.uint8), 3).shape == (3, 3, 3)

    def test_a_server_cannot_be_started_twice_at_once(self, server: TritonServer) -> None:
        with pytest.raises(ServeError, match="runs already"):
            server.start()


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_stops_the_command_with_exit_0_and_nothing_is_left(repository: Path, number: signal.Signals) -> None:
    command = Command(repository)
    line = command.ready()
    assert "2 tasks: sr_x2, derain" in line
    assert len(named(command.family, "triton_python_backend_stub")) == 2
    assert command.regions
    command.process.send_signal(number)
    assert command.process.wait(20) == 0, command.output
    assert command.left() == []
    assert "CudaDriverHelper" not in command.output


@pytest.mark.server
def test_each_line_is_an_object_of_json_where_that_is_asked_for(repository: Path) -> None:
    command = Command(repository, "--log-format=json", "--", "--log-info=true")
    until(lambda: '"ready: ' in command.output or command.process.poll() is not None, 180, "ready")
    command.process.terminate()
    assert command.process.wait(20) == 0, command.output
    lines = [json.loads(line) for line in command.output.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    (ready,) = (line for line in lines if line["message"].startswith("ready: grpc "))
    assert ready["level"] == "info" and "program" not in ready
    started = [line for line in lines if line["message"].startswith("Started GRPCInferenceService")]
    assert [line["program"] for line in started] == ["tritonserver"]


@pytest.fixture
def own_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A log of this test's own, which the command may change as it likes."""
    monkeypatch.setattr(logging.root, "handlers", [])
    for place, name in ((logging.root, "level"), (sys, "excepthook"), (threading, "excepthook")):
        monkeypatch.setattr(place, name, getattr(place, name))
    yield
    logging.captureWarnings(False)


def test_an_empty_address_of_a_collector_is_none(repository: Path) -> None:
    assert main(["--repository", str(repository), "--check", "--trace-url=", *no_ports()]) == 0


@pytest.mark.usefixtures("own_log")
def test_what_a_check_says_is_json_too(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--check", "--log-format=json", *no_ports()]
    assert main(["--repository", str(repository), *words]) == 0
    assert "can be served" in json.loads(capsys.readouterr().out)["message"]
    assert main(["--repository", str(repository / "none"), *words]) == 2
    shown = capsys.readouterr()
    (problem,) = map(json.loads, shown.err.splitlines())
    assert (problem["level"], shown.out) == ("error", "") and "none" in problem["message"]


@pytest.mark.server
def test_http_is_closed_unless_asked_for_and_the_rest_works(repository: Path) -> None:
    command = Command(repository)
    line = command.ready()
    assert line.startswith("ready: grpc 127.0.0.1:") and line.endswith("2 tasks: sr_x2, derain")
    metrics, readiness = re.findall(r"(?:metrics|health) (\S+),", line)
    for url in (metrics, readiness, readiness.replace("readyz", "metrics"), readiness.replace("readyz", "livez")):
        with urllib.request.urlopen(url) as page:
            assert page.status == 200
    (server,) = named(command.family, "tritonserver")[-1:]
    words = Path(f"/proc/{server}/cmdline").read_text()
    assert "--allow-http=false" in words and "--http-port" not in words
    limits = Path(f"/proc/{server}/limits").read_text()
    soft, hard = re.findall(r"Max open files +(\d+) +(\d+)", limits)[0]
    assert int(soft) == min(int(hard), 2**20)
    assert command.regions
    assert all((supervise.SHARED_MEMORY / region).stat().st_mode & 0o077 == 0 for region in command.regions)
    command.process.terminate()
    assert command.process.wait(20) == 0, command.output
    assert command.left() == []


@pytest.mark.server
def test_an_open_http_port_of_an_old_triton_is_warned_of(server: TritonServer) -> None:
    warning = server.faulty_http()
    assert warning is not None and "2.51" in warning and server.http_url in warning


@pytest.mark.parametrize(("word", "off"), [("=false", True), ("=OFF", True), ("=0", True), ("=true", False)])
def test_an_address_is_told_unless_a_flag_turns_it_off(repository: Path, word: str, off: bool) -> None:
    server = TritonServer(repository, extra_args=["--log-info=true", f"--allow-metrics{word}"])
    assert ("metrics" not in server.addresses) == off
    assert server.addresses.startswith("grpc 127.0.0.1:")


@pytest.mark.server
def test_a_stop_of_another_router_than_ours_answers_what_is_in_flight(repository: Path) -> None:
    slow = ROUTER_MODEL.replace(
        "        scale =", "        if image[0, 0, 0]: import time; time.sleep(2)\n        scale ="
    )
    (repository / "restore" / "1" / "model.py").write_text(slow)
    with TritonServer(repository) as server, ThreadPoolExecutor() as pool:
        answers = [pool.submit(restore, server, np.full((3, 3, 3), 9, np.uint8), task) for task in (0, 3)]
        assert server.wait(1) is False
        server.stop(grace=60)
        assert [answer.result().shape for answer in answers] == [(6, 6, 3), (3, 3, 3)]


@pytest.mark.server
def test_a_second_signal_ends_the_server_at_once(repository: Path) -> None:
    slow = ROUTER_MODEL.replace(
        "        scale =", "        if image[0, 0, 0]: import time; time.sleep(60)\n        scale ="
    )
    (repository / "restore" / "1" / "model.py").write_text(slow)
    command = Command(repository)
    url = re.findall(r"grpc (\S+),", command.ready())[0]
    with triton.InferenceServerClient(url) as client:
        image = np.full((3, 3, 3), 9, np.uint8)
        client.async_infer("restore", inputs_of(image, 3), lambda result, error: None)
        time.sleep(0.3)
        command.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert command.process.poll() is None
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(3) == 0, command.output
    assert command.left() == []


@pytest.mark.server
def test_photographs_under_way_get_as_long_as_the_command_was_told_when_it_stops(repository: Path) -> None:
    slow = ROUTER_MODEL.replace(
        "        scale =", "        if image[0, 0, 0]: import time; time.sleep(60)\n        scale ="
    )
    (repository / "restore" / "1" / "model.py").write_text(slow)
    command = Command(repository, "--grace", "1")
    command.ready()
    with triton.InferenceServerClient(command.address("grpc")) as client:
        client.async_infer("restore", inputs_of(np.full((3, 3, 3), 9, np.uint8), 3), lambda result, error: None)
        time.sleep(0.3)
        command.process.terminate()
        assert command.process.wait(12) == 0, command.output  # unless told otherwise it would wait for 15 s
    assert command.left() == []


@pytest.mark.server
def test_a_signal_during_the_start_stops_the_command_with_exit_0(repository: Path) -> None:
    (repository / "restore" / "1" / "model.py").write_text("import time; time.sleep(60)\n" + ROUTER_MODEL)
    command = Command(repository)
    until(lambda: named(descendants(command.process.pid), "triton_python_backend_stub"), 20, "stub")
    command.family = descendants(command.process.pid)
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(5) == 0, command.output
    assert command.left() == []


def test_an_interrupt_before_the_start_is_not_lost(repository: Path) -> None:
    server = TritonServer(repository)
    server.interrupt()
    with pytest.raises(InterruptedStartError):
        server.start()
    assert server.pids == []


@pytest.mark.server
def test_the_folder_that_a_killed_python_backend_leaves_in_tmp_goes_too(repository: Path) -> None:
    everything = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    if named({process for process in everything if parent_of(process) is not None}, "tritonserver"):
        pytest.skip("another tritonserver runs here, which the folder might belong to")
    folders = set(Path("/tmp").glob("python_env_*"))
    with TritonServer(repository) as server:
        assert set(Path("/tmp").glob("python_env_*")) > folders
        server.stop(grace=0)
    assert set(Path("/tmp").glob("python_env_*")) <= folders


@pytest.mark.server
def test_a_killed_stub_leaves_nothing_behind_when_the_server_stops(repository: Path) -> None:
    with TritonServer(repository) as server:
        processes = server.pids
        os.kill(named(set(processes), "triton_python_backend_stub")[0], signal.SIGKILL)
        assert server.wait(0.3) is False
        server.stop(grace=0)
    assert [process for process in processes if parent_of(process) is not None] == []
    assert not list(supervise.SHARED_MEMORY.glob(f"{server.region_prefix}*"))


@pytest.mark.server
def test_a_killed_launcher_takes_its_server_along_and_its_ports_serve_again_at_once(repository: Path) -> None:
    grpc_port, metrics_port, health_port = preflight.free_ports("127.0.0.1", 3)
    first = Command(repository, ports=(grpc_port, metrics_port, health_port))
    first.ready()
    first.process.kill()
    first.process.wait()
    second = Command(repository, ports=(grpc_port, metrics_port, health_port))
    assert f"grpc 127.0.0.1:{grpc_port}" in second.ready()
    assert [process for process in first.family if parent_of(process) is not None] == []
    assert first.regions == []
    # Now the supervisor is killed with the launcher: nobody is left to clean up but the next start.
    (supervisor,) = [process for process in second.family if parent_of(process) == second.process.pid]
    os.kill(supervisor, signal.SIGSTOP)
    second.process.kill()
    second.process.wait()
    os.kill(supervisor, signal.SIGKILL)
    third = Command(repository, ports=(grpc_port, metrics_port, health_port))
    third.ready()
    assert "which a killed server had left" in third.output
    assert [process for process in second.family if parent_of(process) is not None] == []
    assert second.regions == []
    third.process.terminate()
    assert third.process.wait(20) == 0
    assert third.left() == []


@pytest.mark.server
def test_a_killed_supervisor_ends_the_server_and_is_cleaned_up_after(repository: Path) -> None:
    server = TritonServer(repository)
    server.start()
    processes = server.pids
    supervisor = parent_of(named(set(processes), "tritonserver")[0])
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    with pytest.raises(ServerEndedError):
        server.wait(10)
    assert [process for process in processes if parent_of(process) is not None] == []
    assert not list(supervise.SHARED_MEMORY.glob(f"{server.region_prefix}*"))


@pytest.mark.server
def test_a_model_that_does_not_load_ends_the_command_with_its_error(repository: Path) -> None:
    (repository / "restore" / "1" / "model.py").write_text("import no_such_module\n")
    command = Command(repository)
    assert command.process.wait(30) == 1
    assert "tritonserver ended by itself with exit status 1" in command.output
    assert "No module named 'no_such_module'" in command.output.partition("ended by itself")[2]
    assert command.left() == []


@pytest.mark.server
@pytest.mark.parametrize(
    ("change", "message"),
    [(("{0: 2, 3: 1}", "{0: 2}"), "task derain failed"), (("{0: 2,", "{0: 1,"), r"uint8 \(64, 64, 3\) for RESTORED")],
    ids=["error", "wrong size"],
)
def test_a_failing_warm_up_stops_the_server(repository: Path, change: tuple[str, str], message: str) -> None:
    (repository / "restore" / "1" / "model.py").write_text(ROUTER_MODEL.replace(*change))
    server = TritonServer(repository)
    with pytest.raises(WarmUpError, match=message):
        server.start()
    assert not server.running
    assert not list(supervise.SHARED_MEMORY.glob(f"{server.region_prefix}*"))


def test_an_unknown_tritonserver_flag_is_named(repository: Path) -> None:
    with pytest.raises(CheckError, match="--no-such-flag is not a flag of"):
        TritonServer(repository, extra_args=["--no-such-flag"]).start()


def test_a_whole_repository_passes_the_checks_without_a_start(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(repository, "head", PART_CONFIG % "head", "")
    write_model(repository, "tail", PART_CONFIG % "tail", "")
    write_model(repository, "ipt_derain", ENSEMBLE_CONFIG, None)
    assert main(["--repository", str(repository), "--check", *no_ports()]) == 0
    assert "can be served" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("precision", "flags", "note"),
    [
        ("int8", "fma avx2", "no VNNI instructions"),
        ("int8", "avx2 avx512f avx512_vnni", None),
        ("int8", "avx2 avx_vnni", None),
        ("bf16", "avx2 avx512f avx512_vnni", "no BF16 instructions"),
        ("bf16", "avx2 avx512f avx512_bf16", None),
        ("fp32", "avx2", None),
    ],
)
def test_check_notes_what_this_cpu_lacks_and_passes_if_openvino_takes_it(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    flags: str,
    note: str | None,
) -> None:
    config = repository / "restore" / "config.pbtxt"
    parameter = f'parameters {{ key: "precision" value {{ string_value: "{precision}" }} }}'
    config.write_text(f"{config.read_text()}\n{parameter}\n")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n")
    monkeypatch.setattr("ipt_triton.cpu.CPUINFO", cpuinfo)
    monkeypatch.setattr(preflight, "openvino_has_bf16", lambda: True)
    assert main(["--repository", str(repository), "--check", *no_ports()]) == 0
    said = capsys.readouterr()
    assert "can be served" in said.out
    assert (f"ipt-serve: note: this CPU has {note}" in said.err) if note else not said.err
    cpuinfo.unlink()  # a system that does not tell
    assert not preflight.repository_notes(repository)


def test_check_notes_shared_memory_that_cannot_hold_one_photograph(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(supervise.SHARED_MEMORY)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(total=29_000_000))
    assert main(["--repository", str(repository), "--check", *no_ports()]) == 0
    assert "/dev/shm has 29 MB, and one photograph at this repository's limits takes 30 MB" in capsys.readouterr().err


def test_check_refuses_bf16_where_openvino_does(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = repository / "restore" / "config.pbtxt"
    config.write_text(config.read_text().replace('"fp32"', '"bf16"'))
    capable = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert preflight.openvino_has_bf16() == capable  # this CPU, as the runner asks
    monkeypatch.setattr(preflight, "openvino_has_bf16", lambda: False)
    assert main(["--repository", str(repository), "--check", *no_ports()]) == 2
    assert "BF16, which OpenVINO does not compute on this CPU: run ipt-export CHECKPOINT with --precision fp32" in (
        capsys.readouterr().err
    )


def break_nothing_but_the_path(repository: Path) -> None:
    repository.rename(repository.with_name("elsewhere"))


def empty_it(repository: Path) -> None:
    (repository / "restore").rename(repository.with_name("elsewhere"))


def drop_the_routers_config(repository: Path) -> None:
    (repository / "restore" / "config.pbtxt").unlink()


def drop_the_routers_code(repository: Path) -> None:
    (repository / "restore" / "1" / "model.py").unlink()


def drop_the_version_folder(repository: Path) -> None:
    drop_the_routers_code(repository)
    (repository / "restore" / "1").rmdir()


def write_a_body_without_its_graphs(repository: Path, ways: str = '{"": ["head", "body"]}') -> None:
    generated = 'parameters { key: "generated_by" value { string_value: "ipt-export" } }'
    parameter = f"parameters {{ key: 'ways' value {{ string_value: '{ways}' }} }}"
    write_model(repository, "body", PART_CONFIG % "body" + generated + parameter, "")


def write_a_body_of_another_version(repository: Path) -> None:
    write_a_body_without_its_graphs(repository, ways="")


def drop_what_the_router_imports(repository: Path) -> None:
    generated = 'parameters { key: "generated_by" value { string_value: "ipt-export" } }'
    (repository / "restore" / "config.pbtxt").write_text(ROUTER_CONFIG + generated)


def add_a_stray_folder(repository: Path) -> None:
    (repository / "notes").mkdir()


def tear_the_config(repository: Path) -> None:
    (repository / "restore" / "config.pbtxt").write_text(ROUTER_CONFIG[:200])


def add_an_ensemble_without_its_tail(repository: Path) -> None:
    write_model(repository, "head", PART_CONFIG % "head", "")
    write_model(repository, "ipt_derain", ENSEMBLE_CONFIG, None)


def export_for(runtime: str) -> Callable[[Path], None]:
    def change(repository: Path) -> None:
        (repository / "restore" / "config.pbtxt").write_text(ROUTER_CONFIG.replace('"openvino"', f'"{runtime}"'))

    return change


def add_an_onnx_model(repository: Path) -> None:
    folder = write_model(repository, "body", 'name: "body" backend: "onnxruntime"', None)
    (folder / "1" / "model.onnx").touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_nothing_but_the_path, "is not a folder: run ipt-export CHECKPOINT first"),
        (empty_it, "holds no model: run ipt-export CHECKPOINT first"),
        (drop_the_routers_config, "restore/config.pbtxt is missing: run ipt-export CHECKPOINT first"),
        (drop_the_routers_code, "restore/1/model.py is missing"),
        (write_a_body_without_its_graphs, "body/1/body.onnx is missing: run ipt-export CHECKPOINT again"),
        (write_a_body_without_its_graphs, "body/1/head.onnx is missing: run ipt-export CHECKPOINT again"),
        (write_a_body_of_another_version, "body/config.pbtxt is of another version: run ipt-export CHECKPOINT again"),
        *(
            (drop_what_the_router_imports, f"restore/1/{name} is missing: run ipt-export CHECKPOINT again")
            for name in ("tiling.py", "board.py", "seal.py")
        ),
        (drop_the_version_folder, "has no version folder"),
        (add_a_stray_folder, "notes is not a model, it has no config.pbtxt"),
        (tear_the_config, "cannot be read"),
        (add_an_ensemble_without_its_tail, "the ensemble ipt_derain needs the model tail"),
        (export_for("tensorrt"), "exported for Triton's tensorrt backend"),
        (export_for("tensorrt-python"), "the module pycuda is not installed"),
        (export_for("abacus"), "runtime is 'abacus'"),
        (add_an_onnx_model, "body needs Triton's onnxruntime backend"),
    ],
)
def test_check_names_what_is_wrong_with_a_repository_and_exits_2(
    repository: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], message: str
) -> None:
    spoil(repository)
    assert main(["--repository", str(repository), "--check", *no_ports()]) == 2
    assert message in capsys.readouterr().err


def test_every_problem_is_reported_at_once(repository: Path) -> None:
    drop_the_routers_code(repository)
    add_a_stray_folder(repository)
    with pytest.raises(CheckError) as caught:
        TritonServer(repository, extra_args=["--grpc-port=9001"]).start()
    assert len(caught.value.problems) == 3


def test_a_port_in_use_is_named_with_its_flag(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert (
            main(["--repository", str(repository), "--health-port=0", "--metrics-port=0", f"--grpc-port={port}"]) == 2
        )
    assert f"port {port} on 127.0.0.1 is in use: stop what listens there or give another --grpc-port" in (
        capsys.readouterr().err
    )


def test_one_port_for_two_and_a_foreign_host_are_refused() -> None:
    assert "both 9001" in preflight.check_address("127.0.0.1", {"--http-port": 9001, "--grpc-port": 9001})[0]
    assert "not an address of this machine" in preflight.check_address("192.0.2.1", {"--http-port": 9001})[0]
    assert "has no IPv4 address" in preflight.check_address("no-such-host.invalid", {"--http-port": 9001})[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--grpc-port", "70000"],
        ["--grace", "-1"],
        ["--grace", "inf"],
        ["--nonsense"],
        ["stray"],
        ["--", "--model-control-mode=explicit"],
    ],
)
def test_wrong_arguments_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_a_wheel_without_a_stub_for_this_python_is_one_sentence() -> None:
    files = preflight.find_server()
    assert files is not None
    stub = files.stub.parents[1] / "3.99" / files.stub.name
    absent = preflight.ServerFiles(files.executable, files.backends, stub, files.libraries, files.from_wheel)
    if files.from_wheel:
        (problem,) = preflight.check_server(absent)
        assert "has no Python stub" in problem


def test_a_stub_of_another_python_misses_its_libpython() -> None:
    files = preflight.find_server()
    assert files is not None
    if files.from_wheel:
        stub = files.stub.parents[1] / "3.8" / files.stub.name
        other = preflight.ServerFiles(files.executable, files.backends, stub, files.libraries, files.from_wheel)
        (problem,) = preflight.check_server(other)
        assert "3.8" in problem


def test_the_sweep_spares_what_belongs_to_a_living_process() -> None:
    mine = supervise.SHARED_MEMORY / f"{supervise.new_owner()}-region"
    dead = supervise.SHARED_MEMORY / f"ipt-serve-{supervise._namespace()}-{os.getpid()}-1-00000000-region"
    foreign = supervise.SHARED_MEMORY / "ipt-serve-1-2-3-00000000-region"
    regions = (mine, dead, foreign)
    try:
        for region in regions:
            region.touch()
        assert supervise.sweep_leftovers() == [dead.name]
        assert [region.exists() for region in regions] == [True, False, True]
    finally:
        for region in regions:
            region.unlink(missing_ok=True)
