"""The client against a real Triton server whose `restore` is a stand-in without a network, and the command on files."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_network
from helpers.fake_repository import MAX_INPUT_PIXELS, TASKS, write_fake_repository
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from ipt_triton import (
    AsyncRestorationClient,
    InvalidRequest,
    Photo,
    RequestTimeout,
    RestorationClient,
    ServerError,
    ServerUnavailable,
    UnknownTask,
    read_photo,
    write_photo,
)
from ipt_triton.client import protocol
from ipt_triton.client.failures import explain, pause, retry_delays
from ipt_triton.client.restore import main
from ipt_triton.client.splitting import split_axis, split_image
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.tiling import KEEP, PATCH, STRIDE, Tiler, plan_axis

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "client" / "restore.py"


def noise(*shape: int, dtype: str = "uint8", seed: int = 0, first: int | None = None) -> np.ndarray:
    samples = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    if first is not None:
        samples.flat[0] = first
    return samples


def tiled(
    network: Callable[[np.ndarray, int], np.ndarray],
    image: np.ndarray,
    scale: int = 1,
    stride: int = STRIDE,
    keep: int = KEEP,
) -> np.ndarray:
    """What a server without limits gives back."""
    tiler = Tiler(image, scale, PATCH, stride, keep)
    for first, last in tiler.batches(16):
        tiler.add(network(tiler.patches(first, last), scale))
    return tiler.result()


@st.composite
def rules(draw: st.DrawFn) -> tuple[int, int]:
    keep = 2 * draw(st.integers(1, 24))
    return draw(st.integers(1, keep)), keep


# Splitting


@settings(max_examples=400, deadline=None)
@given(size=st.integers(1, 1200), longest=st.integers(48, 400), rule=rules())
def test_pieces_cover_the_axis_and_every_owned_pixel_has_the_tiles_it_has_in_the_whole(
    size: int, longest: int, rule: tuple[int, int]
) -> None:
    try:
        pieces = split_axis(size, longest, PATCH, *rule)
    except InvalidRequest:
        assert longest < 2 * PATCH + rule[0]
        return
    assert [piece.low for piece in pieces] == [0, *(piece.high for piece in pieces[:-1])] and pieces[-1].high == size
    whole = plan_axis(size, PATCH, *rule)
    for piece in pieces:
        assert 0 <= piece.start <= piece.low < piece.high <= piece.stop <= size and piece.stop - piece.start <= longest
        inside = [
            (span.start + piece.start, span.low + piece.start, span.high + piece.start)
            for span in plan_axis(piece.stop - piece.start, PATCH, *rule)
        ]
        for pixel in {piece.low, (piece.low + piece.high) // 2, piece.high - 1, *range(piece.low, piece.high, 7)}:
            assert [start for start, low, high in inside if low <= pixel < high] == [
                span.start for span in whole if span.low <= pixel < span.high
            ]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 260),
    width=st.integers(1, 260),
    scale=st.integers(1, 2),
    rule=rules(),
    max_pixels=st.integers(60 * 60, 200 * 200),
    seed=st.integers(0, 2**31),
)
def test_a_split_image_comes_out_as_the_whole_one_bit_for_bit(
    height: int, width: int, scale: int, rule: tuple[int, int], max_pixels: int, seed: int
) -> None:
    assume(len(plan_axis(height, PATCH, *rule)) * len(plan_axis(width, PATCH, *rule)) < 1500)
    try:
        blocks = split_image(height, width, max_pixels, PATCH, *rule)
    except InvalidRequest:
        assert max_pixels < (2 * PATCH + rule[0]) ** 2
        return
    image = noise(height, width, 3, seed=seed)
    joined = np.zeros((height * scale, width * scale, 3), np.uint8)
    for rows, columns in blocks:
        block = image[rows.start : rows.stop, columns.start : columns.stop]
        assert block.shape[0] * block.shape[1] <= max_pixels
        answer = tiled(fake_network.stamp, block, scale, *rule)
        joined[rows.low * scale : rows.high * scale, columns.low * scale : columns.high * scale] = answer[
            (rows.low - rows.start) * scale : (rows.high - rows.start) * scale,
            (columns.low - columns.start) * scale : (columns.high - columns.start) * scale,
        ]
    np.testing.assert_array_equal(joined, tiled(fake_network.stamp, image, scale, *rule))


def test_the_default_rule_splits_a_gigapixel_with_hardly_any_pixel_sent_twice() -> None:
    blocks = split_image(30_000, 40_000, 64_000_000, PATCH, 36, 36)
    sent = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in blocks)
    assert sent < 1.01 * 30_000 * 40_000


# The library


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(write_fake_repository(tmp_path_factory.mktemp("client") / "models"), http_port=0) as server:
        yield server


@pytest.fixture
def client(server: TritonServer) -> Iterator[RestorationClient]:
    with RestorationClient(server.grpc_url) as client:
        yield client


def test_the_server_tells_its_tasks_rule_limits_and_model(client: RestorationClient) -> None:
    info = client.info()
    assert [(task.id, task.name, task.scale, task.sigma, task.quality) for task in client.tasks()] == [
        (task["id"], task["name"], task["scale"], task["sigma"], task["quality"]) for task in TASKS
    ]
    assert (info.patch_size, info.stride, info.keep, info.max_input_pixels) == (48, STRIDE, KEEP, MAX_INPUT_PIXELS)
    assert (info.runtime, info.precision, info.checkpoint_sha256) == ("openvino", "fp32", "0" * 64)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("task", ["derain", 3, "3"])
def test_an_image_comes_back_in_its_type_and_rank(client: RestorationClient, dtype: str, task: int | str) -> None:
    colour, gray = noise(50, 70, 3, dtype=dtype), noise(50, 70, dtype=dtype)
    np.testing.assert_array_equal(client.restore(colour, task), colour)
    np.testing.assert_array_equal(client.restore(gray, task), gray)
    larger = client.restore(gray, "sr_x2")
    np.testing.assert_array_equal(larger, gray.repeat(2, 0).repeat(2, 1))
    assert larger.dtype == gray.dtype and larger.flags.writeable


def test_arrays_may_be_views_with_any_strides(client: RestorationClient) -> None:
    image = noise(60, 80, 3)[::-1, ::2, ::-1]
    np.testing.assert_array_equal(client.restore(image, "derain"), image)


@pytest.mark.parametrize(
    ("shape", "rule"),
    [((300, 320, 3), (None, None)), ((700, 90, 3), (12, 24)), ((330, 310), (30, 48)), ((1, 50_000), (36, 36))],
)
def test_an_image_over_the_servers_limits_is_the_same_as_from_a_server_without(
    client: RestorationClient, shape: tuple[int, ...], rule: tuple[int | None, int | None]
) -> None:
    image = noise(*shape)
    assert shape[0] * shape[1] > MAX_INPUT_PIXELS
    rgb = image if image.ndim == 3 else image[..., None].repeat(3, 2)
    expected = tiled(fake_network.stamp, rgb, 1, rule[0] or STRIDE, rule[1] or KEEP)
    if image.ndim == 2:
        expected = expected[..., 0]
    np.testing.assert_array_equal(client.restore(image, "stamp", *rule), expected)


def test_an_image_within_the_input_but_over_the_output_limit_is_split_too(client: RestorationClient) -> None:
    image = noise(150, 200, 3)
    np.testing.assert_array_equal(client.restore(image, "sr_x2"), image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    ("image", "arguments", "error", "sentence"),
    [
        (noise(4, 4, 3), {"task": "sr_x9"}, UnknownTask, "task 'sr_x9' is not served; choose one of sr_x2 "),
        (noise(4, 4, 3), {"task": 99}, UnknownTask, "task 99 is not served"),
        (noise(4, 4, 3).astype(float), {}, InvalidRequest, "an image of float64 cannot be restored; give uint8 or"),
        (noise(4, 4, 4), {}, InvalidRequest, "shape \\[4, 4, 4\\] cannot be restored; give RGB"),
        (noise(4, 0, 3), {}, InvalidRequest, "shape \\[4, 0, 3\\]"),
        (noise(4), {}, InvalidRequest, "shape \\[4\\]"),
        (noise(4, 4, 3), {"stride": 0}, InvalidRequest, "STRIDE 0 is not allowed"),
        (noise(4, 4, 3), {"keep": 47}, InvalidRequest, "KEEP 47 is not allowed"),
        (noise(4, 4, 3, first=2), {"task": "crash"}, InvalidRequest, "^this photo is refused$"),
        (noise(4, 4, 3, first=1), {"task": "crash"}, ServerError, "the network is broken\\); look at its log$"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_in_one_sentence(
    client: RestorationClient,
    image: np.ndarray,
    arguments: dict[str, object],
    error: type[Exception],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        client.restore(image, **{"task": "derain", **arguments})
    np.testing.assert_array_equal(client.restore(noise(4, 4, 3), "derain"), noise(4, 4, 3))


def test_a_full_queue_is_tried_again_until_there_is_room(client: RestorationClient) -> None:
    image = noise(20, 20, 3, first=1)
    np.testing.assert_array_equal(client.restore(image, "busy"), image)


def test_a_client_waits_for_as_long_as_the_server_asks_and_not_as_others_do() -> None:
    busy = InferenceServerException("[0] 6 photographs are under way; ask again in 3.5 s", "StatusCode.UNAVAILABLE")
    pauses = [pause(retry_delays(1), busy) for _ in range(20)]
    assert all(3.5 <= delay <= 5.25 for delay in pauses if delay) and len(set(pauses)) > 10
    longer = iter([9.0])
    assert (pause(longer, busy), pause(longer, busy)) == (9, None)
    refused = InferenceServerException("no such thing; ask again in 3.5 s", "StatusCode.INVALID_ARGUMENT")
    assert pause(retry_delays(1), refused) is None


def test_a_server_without_shared_memory_is_asked_again_and_then_named() -> None:
    words = "Failed to increase the shared memory pool size for key 'ipt-serve-4026531836' to 9437184 bytes."
    full = InferenceServerException(words, "StatusCode.INTERNAL")
    assert pause(retry_delays(1), full)
    error = explain(full, "host:8001", None)
    assert isinstance(error, ServerUnavailable)
    assert "host:8001 has no shared memory left; enlarge its /dev/shm" in str(error) and "4026531836" not in str(error)


def test_a_queue_that_stays_full_is_an_error_after_the_last_retry(server: TritonServer) -> None:
    with RestorationClient(server.grpc_url, retries=2) as client:
        client.info()
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match="away or too busy \\(the queue is full\\)"):
            client.restore(noise(20, 20, 3, first=255), "busy")
        assert time.monotonic() - started > 0.5


def test_a_request_over_the_timeout_is_given_up(server: TritonServer) -> None:
    with (
        RestorationClient(server.grpc_url, timeout=0.3) as client,
        pytest.raises(RequestTimeout, match=r"within 0\.3 s"),
    ):
        client.restore(noise(20, 20, 3, first=10), "slow")


def test_no_server_and_another_port_are_told_in_one_sentence(server: TritonServer) -> None:
    for url in ("127.0.0.1:1", server.http_url):
        with (
            RestorationClient(url, retries=0) as client,
            pytest.raises(ServerUnavailable, match=f"{url} is away or too busy .*start it with ipt-serve"),
        ):
            client.tasks()


def test_threads_share_a_client_and_each_gets_its_own_image(client: RestorationClient) -> None:
    images = [noise(60 + n, 50, 3, seed=n) for n in range(8)]
    results: dict[int, np.ndarray] = {}

    def work(n: int) -> None:
        results[n] = client.restore(images[n], "derain")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, image in enumerate(images):
        np.testing.assert_array_equal(results[n], image)


def test_the_asynchronous_client_does_the_same(server: TritonServer) -> None:
    images = [noise(60 + 250 * n, 180, 3, seed=n, first=1) for n in range(3)]

    async def work() -> list[np.ndarray]:
        async with AsyncRestorationClient(server.grpc_url) as client:
            assert [task.id for task in await client.tasks()] == [task["id"] for task in TASKS]
            with pytest.raises(UnknownTask):
                await client.restore(images[0], "nothing")
            np.testing.assert_array_equal(await client.restore(images[0], "busy"), images[0])
            return await asyncio.gather(*(client.restore(image, "stamp") for image in images))

    for image, result in zip(images, asyncio.run(work()), strict=True):
        np.testing.assert_array_equal(result, tiled(fake_network.stamp, image))

    async def away() -> None:
        async with AsyncRestorationClient("127.0.0.1:1", retries=1) as client:
            await client.tasks()

    with pytest.raises(ServerUnavailable):
        asyncio.run(away())


def test_large_images_do_not_hold_the_event_loop_up(
    server: TritonServer, client: RestorationClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go in blocks of their own threads, which come out as a single block."""
    blocks: list[int] = []

    def watched(name: str) -> None:
        method = getattr(protocol.Restoration, name)

        def watch(work: protocol.Restoration, *arguments: Any) -> Any:
            assert threading.current_thread() is not threading.main_thread()
            blocks.append(len(work.parts))
            return method(work, *arguments)

        monkeypatch.setattr(protocol.Restoration, name, watch)

    image = noise(310, 280, 3, first=1)
    expected = client.restore(image, "stamp")
    monkeypatch.setattr(protocol, "MESSAGE_BYTES", 6 * 150**2)
    monkeypatch.setattr(protocol, "_FEWEST_PIXELS", 1)
    for name in ("inputs", "put", "result"):
        watched(name)

    async def work() -> list[np.ndarray]:
        async with AsyncRestorationClient(server.grpc_url) as client:
            watching = client.restore(image, "stamp", progress=lambda done, due: None)
            return [await client.restore(image, "stamp"), await watching]

    for result in asyncio.run(work()):
        np.testing.assert_array_equal(result, expected)
    (parts,) = set(blocks)
    tries = len(blocks) - 2 * (2 * parts + 1)
    assert parts > 4 and tries in (1, 2)  # the first messages find out that no progress is told here


@pytest.mark.server
def test_a_server_killed_under_a_request_is_waited_for_and_asked_again(tmp_path: Path) -> None:
    image = noise(20, 20, 3, first=15)
    with TritonServer(write_fake_repository(tmp_path / "models")) as server:
        port = int(server.grpc_url.rpartition(":")[2])
        with RestorationClient(server.grpc_url) as client, RestorationClient(server.grpc_url, retries=0) as hasty:
            answers: list[np.ndarray | Exception] = []

            def work(client: RestorationClient) -> None:
                try:
                    answers.append(client.restore(image, "slow"))
                except ServerUnavailable as error:
                    answers.append(error)

            threads = [threading.Thread(target=work, args=(each,)) for each in (client, hasty)]
            for thread in threads:
                thread.start()
            time.sleep(0.4)
            server.stop(grace=0)
            threads[1].join()
            assert isinstance(answers[0], ServerUnavailable)
            with TritonServer(server.repository, grpc_port=port):
                threads[0].join()
            np.testing.assert_array_equal(answers[1], image)


# The command


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with photos at two depths, of several kinds."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    write_photo(Photo(noise(60, 50, 3)), folder / "colour.png")
    write_photo(Photo(noise(40, 50, 3, dtype="uint16"), noise(40, 50, dtype="uint16")), folder / "inner" / "deep.TIFF")
    write_photo(Photo(noise(30, 20, 1).repeat(3, 2), is_gray=True), folder / "inner" / "gray.bmp")
    (folder / "inner" / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def command(server: TritonServer) -> Callable[..., int]:
    return lambda *arguments: main([*map(str, arguments), "--url", server.grpc_url])


def test_a_photo_becomes_a_png_of_its_name(
    command: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "folder"
    assert command(photos / "colour.png", "--task", "sr_x2", "--output", output) == 0
    np.testing.assert_array_equal(read_photo(output / "colour.png").pixels, noise(60, 50, 3).repeat(2, 0).repeat(2, 1))
    said = capsys.readouterr()
    assert said.out.startswith(f"{output / 'colour.png'}  100x120  ") and said.out.count("\n") == 1
    assert said.err == ""  # no progress without a terminal
    assert [path.name for path in output.iterdir()] == ["colour.png"]


def test_a_folder_keeps_its_tree_kinds_and_depths(command: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert (
        command(photos, "--task", "3", "--output", output, "--suffix", "_dry", "--format", "tiff", "--workers", 3) == 0
    )
    written = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    assert written == ["colour_dry.tiff", "inner/deep_dry.tiff", "inner/gray_dry.tiff"]
    deep = read_photo(output / "inner" / "deep_dry.tiff")
    original = read_photo(photos / "inner" / "deep.TIFF")
    assert original.alpha is not None and deep.bits == 16
    np.testing.assert_array_equal(deep.alpha, original.alpha)
    opaque = original.alpha > 60000
    assert np.abs(deep.pixels[opaque].astype(int) - original.pixels[opaque]).max() <= 1
    gray = read_photo(output / "inner" / "gray_dry.tiff")
    assert gray.is_gray
    np.testing.assert_array_equal(gray.pixels, read_photo(photos / "inner" / "gray.bmp").pixels)


def test_results_inside_the_folder_are_not_taken_for_photos(command: Callable[..., int], photos: Path) -> None:
    arguments = (photos, "--task", "derain", "--output", photos / "restored")
    assert command(*arguments) == 0
    before = sorted(photos.rglob("*"))
    assert command(*arguments, "--overwrite") == 0
    assert sorted(photos.rglob("*")) == before


def test_a_bad_photo_is_named_and_the_others_are_done(
    command: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes((photos / "colour.png").read_bytes()[:900])
    report = tmp_path / "report.json"
    assert command(photos, "--task", "derain", "--output", tmp_path / "out", "--json", report) == 1
    said = capsys.readouterr()
    assert f"{photos / 'broken.png'} is truncated or damaged" in said.err
    assert "3 restored" in said.err and "1 failed" in said.err and said.out.count("\n") == 3
    content = json.loads(report.read_text())
    assert content["counts"] == {"restored": 3, "failed": 1} and content["task"]["name"] == "derain"
    assert (content["stride"], content["keep"], content["runtime"]) == (STRIDE, KEEP, "openvino")
    bad = next(photo for photo in content["photos"] if photo["status"] == "failed")
    assert bad["input"] == str(photos / "broken.png") and "truncated" in bad["error"]
    assert not (tmp_path / "out" / "broken.png").exists()


def test_a_photo_that_the_format_cannot_hold_or_the_server_fails_at_is_named(
    command: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(photos, "--task", "derain", "--output", tmp_path / "out", "--format", "jpg") == 1
    assert "JPEG cannot hold 16-bit samples; choose png or tiff\n" in capsys.readouterr().err
    write_photo(Photo(noise(8, 8, 3, first=1)), tmp_path / "crash.png")
    assert command(tmp_path / "crash.png", "--task", "crash", "--output", tmp_path / "out") == 1
    assert f"{tmp_path / 'crash.png'}: the server at" in capsys.readouterr().err


def test_existing_results_are_refused_skipped_or_overwritten(
    command: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    (output / "inner").mkdir(parents=True)
    (output / "inner" / "gray.bmp").write_text("mine")
    assert command(photos, "--task", "derain", "--output", output) == 2
    assert f"{output / 'inner' / 'gray.bmp'} exists; give --overwrite, --skip-existing" in capsys.readouterr().err
    assert not (output / "colour.png").exists()
    assert command(photos, "--task", "derain", "--output", output, "--skip-existing", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"restored": 2, "skipped": 1}
    assert (output / "inner" / "gray.bmp").read_text() == "mine"
    assert command(photos, "--task", "derain", "--output", output, "--overwrite") == 0
    assert read_photo(output / "inner" / "gray.bmp").size == (20, 30)


def test_contradicting_inputs_are_refused_before_any_work(
    command: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(Photo(noise(8, 8, 3)), photos / "colour.jpg")
    (tmp_path / "empty").mkdir()
    for arguments, sentence in (
        ([photos, "--output", tmp_path / "out.png"], "out.png takes one photo; give a folder for several"),
        ([photos / "colour.png", "--output", photos, "--overwrite"], "is one of the photos; choose another --output"),
        ([tmp_path / "nothing.png", "--output", tmp_path / "out"], "nothing.png is not there; give image files"),
        ([tmp_path / "empty", "--output", tmp_path / "out"], "empty holds no image; allowed are files ending in .avif"),
    ):
        assert command(*arguments, "--task", "derain") == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_end_with_2_and_say_what_is_allowed(
    command: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, output = photos / "colour.png", ("--output", tmp_path / "out")
    for arguments, sentence in (
        ([], "PHOTO, --task, --output missing; for example: ipt-restore photo.jpg"),
        ([photo, *output, "--task", "derain", "--workers", "0"], "--workers 0 is not allowed"),
        ([photo, *output, "--task", "derain", "--format", "xyz"], "invalid choice: 'xyz'"),
        ([photo, *output, "--task", "derain", "--suffix", "a/b"], "must not hold a slash"),
        ([photo, *output, "--task", "derain", "--shard", "3/2"], "--shard 3/2 is not allowed; give I/N"),
        ([photo, *output, "--task", "derain", "--quality", "0"], "--quality 0 is not allowed; give 1 to 100"),
        ([photo, *output, "--task", "derain", "--flatten", "mud"], "--flatten 'mud' is no colour"),
        ([photo, *output, "--task", "derain", "--weights", "w", "--url", "u"], "--weights is for a server of our own"),
        ([photo, *output, "--task", "derain", "--keep-server", "-1"], "--keep-server -1 is not allowed"),
        ([photo, *output, "--task", "derain", "--reference", tmp_path / "no"], "is no folder"),
        (["-", *output, "--task", "derain", "--files-from", "-"], "standard input is a photo or a list"),
        ([photo, *output, "--task", "derain", "--json", tmp_path / "no" / "r.json"], "there is no folder"),
    ):
        with pytest.raises(SystemExit) as caught:
            command(*arguments)
        assert caught.value.code == 2 and sentence in capsys.readouterr().err
    for arguments, sentence in (
        (["--task", "sr_x9"], "task 'sr_x9' is not served; choose one of sr_x2 (0)"),
        (["--task", "derain", "--stride", "47"], "STRIDE 47 is not allowed"),
    ):
        assert command(photo, *output, *arguments) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tasks_are_listed_for_people_and_for_scripts(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--list-tasks") == 0
    assert "0  sr_x2            sr, scale 2\n" in capsys.readouterr().out
    assert command("--list-tasks", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == TASKS


@pytest.mark.server
def test_a_server_that_goes_away_ends_the_command_with_2_and_a_summary(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(Photo(noise(20, 20, 3, first=20)), photos / "slow.png")
    with TritonServer(write_fake_repository(tmp_path / "models")) as server:
        arguments = [photos, "--task", "slow", "--output", tmp_path / "out", "--url", server.grpc_url, "--retries", 1]
        threading.Timer(1.0, server.stop, kwargs={"grace": 0}).start()
        assert main(list(map(str, arguments))) == 2
    said = capsys.readouterr().err
    assert "is away or too busy" in said and "not reached" in said
    assert not list(tmp_path.rglob("*.part"))


def bare_environment() -> dict[str, str]:
    """The installed packages without ours: site's .pth files, where an editable install lives, are not read."""
    return {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}


def test_the_script_runs_from_a_checkout_without_installation(
    server: TritonServer, photos: Path, tmp_path: Path
) -> None:
    arguments = [photos / "colour.png", "--task", "derain", "--output", tmp_path / "out", "--url", server.grpc_url]
    done = subprocess.run(
        [sys.executable, "-S", SCRIPT, *arguments], cwd=tmp_path, env=bare_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_photo(tmp_path / "out" / "colour.png").pixels, noise(60, 50, 3))


def test_the_client_needs_no_torch() -> None:
    code = (
        "import sys, client.restore; print([m for m in ('torch', 'onnx', 'openvino', 'pytriton') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "[]\n"


def test_progress_is_drawn_on_a_terminal(server: TritonServer, photos: Path, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    arguments = [photos, "--task", "derain", "--output", tmp_path / "out", "--url", server.grpc_url]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], stderr=terminal, stdout=subprocess.PIPE, text=True)
    os.close(terminal)
    drawn = os.read(controller, 100_000).decode()
    os.close(controller)
    assert done.returncode == 0 and done.stdout.count("\n") == 3
    assert "3/3" in drawn and "photo/s" in drawn


def test_ctrl_c_leaves_whole_files_only(server: TritonServer, tmp_path: Path) -> None:
    for n in range(6):
        write_photo(Photo(noise(20, 20, 3, first=5 if n < 2 else 40)), tmp_path / f"photo{n}.png")
    arguments = [
        *sorted(tmp_path.glob("*.png")),
        "--task",
        "slow",
        "--output",
        tmp_path / "out",
        "--url",
        server.grpc_url,
    ]
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert [process.stdout.readline(), process.stdout.readline()]  # two are done, two under way
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "2 restored, 4 not reached; interrupted" in said and "Traceback" not in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["photo0.png", "photo1.png"]
