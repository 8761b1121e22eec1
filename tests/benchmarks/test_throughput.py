"""The throughput benchmark: its load, the server's statistics, and the command, against real servers."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from helpers.fake_repository import write_fake_repository
from helpers.support import Served, read_image, small_model

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import LoadError
from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.serving import shared_body, single_tasks, throughput
from ipt_triton.benchmarks.serving.load import (
    ClosedLoop,
    Request,
    Window,
    latency_ms,
    patch_request,
    restore_request,
)
from ipt_triton.benchmarks.serving.server_statistics import ObservedServer
from ipt_triton.client.protocol import ServerInfo
from ipt_triton.export.parts.split import plan_routes
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.model.checkpoint import load_checkpoint, save_checkpoint
from ipt_triton.train.model.ipt import IPTConfig

INSTANCES = 2  # of the fake router
WORK_S = 0.2  # that it takes for a request of the task `slow`


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A router that sleeps: its throughput is known, however busy the machine is."""
    with TritonServer(write_fake_repository(tmp_path_factory.mktemp("fake") / "models")) as server:
        yield server


def slow_request(server: TritonServer) -> Request:
    with RestorationClient(server.grpc_url) as client:
        info = client.info()
    return restore_request(info, info.task("slow"), np.full((48, 48, 3), round(WORK_S * 10), np.uint8))


@pytest.fixture
def info(client: RestorationClient) -> ServerInfo:
    return client.info()


def counts(served: Served) -> dict[str, int]:
    """Patches and images that each model has had, from the server."""
    with triton.InferenceServerClient(served.server.grpc_url) as connection:
        return {stats.name: stats.inference_count for stats in connection.get_inference_statistics().model_stats}


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    try:
        status = throughput.main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_rate_and_latency_are_those_of_a_server_whose_speed_is_known(slow_server: TritonServer, concurrency: int):
    with ClosedLoop(slow_server.grpc_url, [slow_request(slow_server)], concurrency) as loop:
        loop.warm_up(0.5)
        windows = [loop.window(1.0) for _ in range(3)]
    busy = min(concurrency, INSTANCES)
    fastest = busy / WORK_S
    answered = sum(len(window.latencies) for window in windows)
    assert answered <= fastest * sum(window.seconds for window in windows) + busy  # those were begun before
    for window in windows:
        assert window.seconds >= 1
        assert len(window.latencies) % concurrency == 0
        assert window.rate > 0.4 * fastest  # a busy machine wakes up late
        assert len(window.latencies) <= fastest * window.seconds + busy
        assert window.rate * latency_ms([window])["mean"] / 1e3 == pytest.approx(concurrency, rel=0.05)


@pytest.mark.server
def test_server_that_goes_away_under_load_ends_it_with_an_error(tmp_path: Path):
    with TritonServer(write_fake_repository(tmp_path / "models")) as server:
        request = slow_request(server)
        before = threading.active_count()
        with pytest.raises(LoadError, match="under load"), ClosedLoop(server.grpc_url, [request], 3) as loop:
            loop.warm_up(0.1)
            server.kill()
            loop.window(60)
        assert threading.active_count() <= before


def test_answer_of_another_shape_is_refused_before_the_load(slow_server: TritonServer):
    request = replace(slow_request(slow_server), answer=(96, 96, 3))
    with (
        pytest.raises(LoadError, match=r"\(48, 48, 3\).*slow.*\(96, 96, 3\)"),
        ClosedLoop(slow_server.grpc_url, [request], 1),
    ):
        pass


def test_latencies_of_all_windows_are_taken_together():
    windows = [Window(1.0, (0.1, 0.2, 0.3)), Window(1.0, (0.4, 0.9))]
    assert latency_ms(windows) == {"mean": 380.0, "p50": 300.0, "p95": 800.0, "p99": 880.0}


def test_every_patch_that_was_counted_went_through_the_body(served: Served, info: ServerInfo):
    photo = read_image("dog")[:100, :131]
    requests = {
        "restore": [restore_request(info, info.task("sr_x3"), photo)],
        "patches": [patch_request(info, info.task("denoise_50"), photo, 3)],
    }
    assert [requests[level][0].patches for level in requests] == [3 * 4, 3]
    for request in requests.values():
        before = counts(served)
        with ClosedLoop(served.server.grpc_url, request, 3) as loop:
            loop.window(0.3)
        due = before["body"] + loop.answered * request[0].patches
        end = time.monotonic() + 5  # Triton counts a request a moment after its answer
        while counts(served)["body"] < due and time.monotonic() < end:
            time.sleep(0.05)
        assert counts(served)["body"] == due
    assert request[0].input_pixels == 3 * 48 * 48


def test_mixed_load_asks_as_often_for_each_task(served: Served, info: ServerInfo):
    photo = read_image("dog")[:48, :48]
    tasks = ("sr_x2", "derain", "denoise_30")
    before = counts(served)
    with ClosedLoop(served.server.grpc_url, [restore_request(info, info.task(t), photo) for t in tasks], 2) as loop:
        window = loop.window(0.3)
    time.sleep(0.5)  # Triton counts a request a moment after its answer
    after = counts(served)
    asked = [after[f"ipt_{task}"] - before[f"ipt_{task}"] for task in tasks]
    assert max(asked) - min(asked) <= 1
    assert sum(asked) == loop.answered
    assert len(window.latencies) % 6 == 0


def test_measurement_obeys_littles_law_and_agrees_with_the_servers_own_times(served: Served, info: ServerInfo):
    request = patch_request(info, info.task("derain"), read_image("dog")[:200, :200], 8)
    with ObservedServer(served.server.grpc_url, ["derain"], served.server.pids) as server:
        cell = single_tasks.measure(server, request, 4, 0.7)
    rate = cell["requests_per_s"]["median"]
    latency = cell["latency_ms"]
    fewest, most = (cell["requests_per_s"][end] * latency["mean"] / 1e3 for end in ("low", "high"))
    assert 0.85 * fewest < 4 < 1.15 * most  # windows differ on a busy machine
    assert latency["p50"] <= latency["p95"] <= latency["p99"]
    assert cell["patches_per_s"] == pytest.approx(8 * rate)
    assert cell["input_mp_per_s"] == cell["output_mp_per_s"] == pytest.approx(rate * 8 * 48 * 48 / 1e6)
    parts = cell["server"]
    assert 1 <= parts["body_batch"] <= 8
    assert "router" not in parts
    inside = parts["body"]["queue_ms"] + parts["body"]["compute_ms"]
    assert 0.5 * latency["mean"] < inside < 1.1 * latency["mean"]
    assert parts["body"]["busy"] == 1 and not {"head", "tail"} & parts.keys()
    assert math.isclose(sum(parts["cpu"].values()), 1, abs_tol=1e-3)
    assert parts["cpu"]["body"] == max(parts["cpu"].values())


def test_command_measures_a_running_server_and_its_record_shows_the_same(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status, out, err = command(
        capsys,
        *("--url", served.server.grpc_url, "--tasks", "sr_x2,5", "--concurrency", "2,1", "--size", "64x50"),
        *("--seconds", "0.1", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")),
    )
    assert status == 0, err
    record = Record.load(tmp_path / "a.json")
    assert out.startswith(throughput.markdown(record))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    for level in ("restore", "patches"):
        cells = record.figures["levels"][level]
        assert [(c["task"], c["concurrency"]) for c in cells] == [
            (task, n) for n in (1, 2) for task in ("sr_x2", "denoise_50")
        ]
        for cell in cells:
            assert cell["output_mp_per_s"] == pytest.approx(
                cell["input_mp_per_s"] * (4 if cell["task"] == "sr_x2" else 1)
            )
            assert ("router" in cell["server"]) == (level == "restore")
            assert cell["server"]["cpu"] is None


def test_mixed_load_of_a_running_server_is_compared_with_its_single_tasks(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status, out, err = command(
        capsys,
        *("--url", served.server.grpc_url, "--tasks", "derain,denoise_30", "--concurrency", "2", "--patches", "2"),
        *("--levels", "patches", "--mixed", "--seconds", "0.1", "--json", str(tmp_path / "a.json")),
    )
    assert status == 0, err
    (cell,) = json.loads((tmp_path / "a.json").read_text())["figures"]["mixed"]["patches"]
    assert set(cell["mixed"]) == {"shared"}
    alone = [rate["median"] for rate in cell["single_patches_per_s"].values()]
    assert min(alone) * 0.7 < cell["single_mean_patches_per_s"]["median"] < max(alone) * 1.3
    assert cell["mixed"]["shared"]["to_single"]["median"] > 0.3
    assert "one shared body" in out
    assert "a body per task" not in out


@pytest.mark.server
def test_shared_body_is_compared_with_a_body_per_task_on_servers_of_our_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny = IPTConfig(features=3, encoder_layers=0, decoder_layers=0, heads=1, ffn_ratio=1, tasks=OFFICIAL_TASKS[3:5])
    save_checkpoint(small_model(config=tiny), tmp_path / "two", provenance={})
    status, out, err = command(
        capsys,
        *("--checkpoint", str(tmp_path / "two"), "--mixed", "--levels", "patches", "--concurrency", "2"),
        *("--seconds", "0.1", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")),
    )
    assert status == 0, err
    record = Record.load(tmp_path / "a.json")
    (cell,) = record.figures["mixed"]["patches"]
    memory = {name: mixed["memory_mib"] for name, mixed in cell["mixed"].items()}
    assert memory["separate"] > memory["shared"] > 0
    assert out.startswith(throughput.markdown(record))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_one_body_each_is_exported_as_that_many_bodies_and_restores_the_same(small_checkpoint: Path):
    checkpoint = load_checkpoint(small_checkpoint)
    each = shared_body.one_body_each(checkpoint)
    routes, _ = plan_routes(each)
    assert len({route.body for route in routes}) == len(checkpoint.model.config.tasks)
    patches = torch.rand(1, 3, 48, 48) * 255
    for alone, task in zip(each, checkpoint.model.config.tasks, strict=True):
        with torch.inference_mode():
            difference = alone.model(patches, task.name) - checkpoint.model(patches, task.name)
        assert difference.abs().max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "sharpen"], "'sharpen' is not served; choose one of sr_x2"),
        (["--tasks", "derain,3"], "names a task twice"),
        (["--patches", "9", "--levels", "patches"], "must be <= 8 for 'ipt_sr_x2'"),
        (["--size", "2000x600", "--levels", "restore"], "1000000 are allowed"),
        (["--size", "512"], "'512' is not a size; give WIDTHxHEIGHT"),
        (["--concurrency", "1,0"], "'1,0' is not a list of numbers from 1"),
        (["--levels", "images"], "'images' is not allowed; give one or both of restore,patches"),
        (["--seconds", "0"], "'0' is not allowed; give a number above 0"),
        (["--preset", "ipt-tiny"], "either --url, or --checkpoint or --preset"),
    ],
)
def test_wrong_arguments_are_named(
    served: Served, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    status, out, err = command(capsys, "--url", served.server.grpc_url, *arguments)
    assert status == 2
    assert not out
    assert re.search(message, err)


def test_no_server_is_said_at_once(capsys: pytest.CaptureFixture[str]):
    status, _, err = command(capsys, "--url", "localhost:1")
    assert status == 2
    assert "localhost:1 is away" in err
