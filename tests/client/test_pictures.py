"""What the library takes for an image and gives back, files into files, and many images as they come."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.here import run
from helpers.pretended import Pretended, over_grpc
from PIL import Image

from ipt_triton import AsyncRestorationClient, ImageError, InvalidRequest, Photo, RestorationClient
from ipt_triton.client.photo import read_frames, read_photo, write_photo

RGB = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
CLEAR = np.random.default_rng(1).integers(1, 256, (50, 60), np.uint8)


@pytest.fixture
def told() -> Iterator[Pretended]:
    """A server that gives every image back."""
    with over_grpc() as pretended:
        yield pretended


@pytest.fixture
def client(told: Pretended) -> Iterator[RestorationClient]:
    with RestorationClient(told.address) as connected:
        yield connected


def both(address: str, name: str, *arguments: Any, **options: Any) -> list[Any]:
    """What a method of the blocking client gives, and that of the other."""

    async def asked() -> Any:
        async with AsyncRestorationClient(address) as client:
            return await getattr(client, name)(*arguments, **options)

    with RestorationClient(address) as client:
        return [getattr(client, name)(*arguments, **options), asyncio.run(asked())]


def test_paths_bytes_files_and_pillow_images_become_photos_and_arrays_arrays(told: Pretended, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_photo(Photo(RGB, CLEAR, comment="by hand", dpi=(300.0, 300.0)), path)
    data = path.read_bytes()
    for image in (path, str(path), data, Image.open(path), read_photo(path)):
        for restored in both(told.address, "restore", image, "derain"):
            assert isinstance(restored, Photo) and restored.alpha is not None
            np.testing.assert_array_equal(restored.alpha, CLEAR)
            assert np.abs(restored.pixels.astype(int) - RGB).max() <= 1  # premultiplied on the way
            assert isinstance(image, Image.Image) or restored.texts == {"Comment": "by hand"}
    with path.open("rb") as file:
        assert RestorationClient(told.address).restore(file, "derain").size == (60, 50)
    for restored in both(told.address, "restore", RGB, "derain"):
        np.testing.assert_array_equal(restored, RGB)


def test_what_is_no_image_is_named_before_anything_is_sent(client: RestorationClient, told: Pretended) -> None:
    with pytest.raises(TypeError, match="type int is not allowed; give a path"):
        client.restore(3, "derain")  # type: ignore[call-overload]
    with pytest.raises(ImageError, match=r"none.png cannot be read"):
        client.restore("none.png", "derain")
    assert told.asked == 0


def test_progress_counts_colours_and_opacity_together(client: RestorationClient) -> None:
    seen: list[tuple[int, int]] = []
    client.restore(Photo(RGB, CLEAR), "derain", progress=lambda done, due: seen.append((done, due)))
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] and len({due for _, due in seen}) == 1
    assert seen == sorted(set(seen)) and seen[-1][1] == 2 * _patches(client)


def _patches(client: RestorationClient) -> int:
    seen: list[int] = []
    client.restore(RGB, "derain", progress=lambda done, due: seen.append(due))
    return seen[0]


def test_a_file_becomes_the_file_that_the_command_writes(told: Pretended, tmp_path: Path) -> None:
    write_photo(Photo(RGB, comment="by hand"), tmp_path / "a.jpg")
    options = {"strength": 0.5, "quality": 80}
    both(told.address, "restore_file", tmp_path / "a.jpg", tmp_path / "ours.jpg", "derain", **options)
    words = ("-t", "derain", "--strength", 0.5, "-q", 80, "--url", told.address)
    assert run(tmp_path / "a.jpg", "-o", tmp_path / "its.jpg", *words) == 0
    assert (tmp_path / "ours.jpg").read_bytes() == (tmp_path / "its.jpg").read_bytes()
    asked = told.asked
    assert run(tmp_path / "a.jpg", "-o", tmp_path / "ours.jpg", *words, "--skip-existing") == 0
    assert told.asked == asked


def test_files_of_several_frames_and_streams_are_restored_too(told: Pretended, tmp_path: Path) -> None:
    frames = [Image.fromarray(np.roll(RGB, shift, 1)) for shift in (0, 20, 40)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=[100, 200, 300], loop=2)
    both(told.address, "restore_file", tmp_path / "a.png", tmp_path / "b.png", "derain")
    before, after = read_frames(tmp_path / "a.png"), read_frames(tmp_path / "b.png")
    assert (after.durations, after.plays) == (before.durations, before.plays)
    for photo, made in zip(before.photos, after.photos, strict=True):
        np.testing.assert_array_equal(photo.pixels, made.pixels)
    stream = io.BytesIO()
    with RestorationClient(told.address) as client:
        client.restore_file(io.BytesIO((tmp_path / "a.png").read_bytes()), stream, "derain", format="webp")
        with pytest.raises(ImageError, match="JPEG cannot hold 3 frames"):
            client.restore_file(tmp_path / "a.png", tmp_path / "c.jpg", "derain")
    assert len(read_frames(stream.getvalue()).photos) == 3


def images(number: int, taken: list[int]) -> Iterator[np.ndarray]:
    for shift in range(number):
        taken.append(shift)
        yield np.roll(RGB, shift, 1)


def test_a_stream_keeps_the_order_and_takes_no_more_than_it_has_workers(client: RestorationClient) -> None:
    taken: list[int] = []
    for number, restored in enumerate(client.stream(images(9, taken), "derain", workers=3)):
        np.testing.assert_array_equal(restored, np.roll(RGB, number, 1))
        assert len(taken) <= number + 3
    assert len(taken) == 9


def test_images_of_a_stream_are_under_way_together(told: Pretended, client: RestorationClient) -> None:
    client.info()
    meeting = threading.Barrier(2, timeout=20)  # broken, and the request refused, if they came one by one
    first = threading.Semaphore(2)

    def meet(request: object, context: object) -> None:
        if first.acquire(blocking=False):
            meeting.wait()

    told.before = meet
    small = [RGB[:40, :40], RGB[:41, :41]]
    assert [restored.shape for restored in client.stream(small, "derain")] == [(40, 40, 3), (41, 41, 3)]


def test_an_error_of_a_stream_comes_in_its_place_and_ends_it(client: RestorationClient) -> None:
    wrong: list[Any] = [RGB, RGB.astype(np.int64), RGB]
    results = client.stream(wrong, "derain", workers=2)
    np.testing.assert_array_equal(next(results), RGB)
    with pytest.raises(InvalidRequest, match="int64"):
        next(results)
    assert next(results, None) is None
    with pytest.raises(InvalidRequest, match="workers 0 is not allowed; give 1 or more"):
        next(client.stream([RGB], "derain", workers=0))


def test_a_stream_of_the_asynchronous_client_does_the_same(told: Pretended) -> None:
    async def restore_all(source: Any, workers: int) -> list[Any]:
        async with AsyncRestorationClient(told.address) as client:
            return [restored async for restored in client.stream(source, "derain", workers=workers)]

    async def coming() -> AsyncIterator[np.ndarray]:
        for image in images(5, []):
            yield image

    for source in (images(5, []), coming()):
        for number, restored in enumerate(asyncio.run(restore_all(source, 2))):
            np.testing.assert_array_equal(restored, np.roll(RGB, number, 1))

    async def leave() -> int:
        async with AsyncRestorationClient(told.address) as client:
            results = client.stream(images(50, []), "derain", workers=4)
            await anext(results)
            await results.aclose()
            for _ in range(100):  # gRPC's own end a moment after their calls
                if (left := len(asyncio.all_tasks()) - 1) == 0:
                    break
                await asyncio.sleep(0.05)
            return left

    assert asyncio.run(leave()) == 0
