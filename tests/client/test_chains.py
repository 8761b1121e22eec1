"""Chains of tasks and what a caller may want beside them: sizes, views, strength; against a stand-in of the server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from helpers import fake_network
from helpers.fake_repository import MAX_INPUT_PIXELS, write_fake_repository
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from ipt_triton import InvalidRequest, RestorationClient, UnknownTask
from ipt_triton.client import protocol
from ipt_triton.client.options import Options, large_enough, resized, views
from ipt_triton.client.protocol import Restoration
from ipt_triton.client.splitting import Block, right_part, split_axis
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.tasks import OFFICIAL_TASKS, Chain, Task
from ipt_triton.tiling import KEEP, PATCH, STRIDE, Tiler, count_patches, factors, plan_axis

SR2, SR3, SR4, DERAIN, DENOISE, _ = OFFICIAL_TASKS


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def stamped(image: np.ndarray, scales: Sequence[int], rule: tuple[int, int], dtype: str = "uint8") -> np.ndarray:
    """What a server without limits makes of an image by networks that look at whole tiles; not rounded in between."""
    for stage, scale in enumerate(scales, 1):
        tiler = Tiler(image, scale, PATCH, *rule, dtype=dtype if stage == len(scales) else "float32")
        for first, end in tiler.batches(32):
            tiler.add(fake_network.stamp(tiler.patches(first, end), scale).astype(np.float32))
        image = tiler.result()
    return image


RULES = st.one_of(
    st.sampled_from([(STRIDE, KEEP), (36, 36), (24, 24), (12, 24), (30, 48), (48, 48)]),
    st.integers(6, 24).flatmap(lambda half: st.tuples(st.integers(half // 2, 2 * half), st.just(2 * half))),
)


@settings(max_examples=50, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 60), st.integers(90, 360)),
    turned=st.booleans(),
    longest=st.integers(60, 300),
    scales=st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=3),
    rule=RULES,
    seed=st.integers(0, 2**31),
)
def test_a_split_image_comes_out_of_a_chain_as_the_whole_one_bit_for_bit(
    sides: tuple[int, int], turned: bool, longest: int, scales: list[int], rule: tuple[int, int], seed: int
) -> None:
    height, width = sides[::-1] if turned else sides
    assume(height * width * factors(scales)[-2] ** 2 / rule[0] ** 2 < 1500)
    try:
        pieces = [split_axis(side, longest, PATCH, *rule, scales) for side in (height, width)]
    except InvalidRequest:
        assert longest < (2 * PATCH + rule[0]) * len(scales)
        return
    image = noise(height, width, 3, seed=seed)
    whole = stamped(image, scales, rule)
    joined = np.zeros_like(whole)
    for rows in pieces[0]:
        for columns in pieces[1]:
            block = Block(rows, columns)
            sent = block.cut(image)
            assert max(sent.shape) <= max(longest, min(height, width))
            block.put(stamped(sent, scales, rule), joined, factors(scales)[-1])
    np.testing.assert_array_equal(joined, whole)


@settings(max_examples=200, deadline=None)
@given(size=st.integers(100, 900), rule=RULES, data=st.data())
def test_what_comes_out_right_of_a_part_grows_with_what_is_known_of_it(
    size: int, rule: tuple[int, int], data: st.DataObject
) -> None:
    whole = plan_axis(size, PATCH, *rule)
    start = data.draw(st.sampled_from([span.start for span in whole]))
    stop = data.draw(st.integers(min(start + PATCH, size), size))
    low, high = right_part(whole, start, stop, (start, stop), PATCH, *rule)
    assert start <= low <= high <= stop
    less = right_part(whole, start, stop, (min(start + 1, stop), max(start, stop - 1)), PATCH, *rule)
    assert less[0] >= less[1] or (low <= less[0] and less[1] <= high)


def test_a_chain_costs_a_large_photo_hardly_more_than_its_tasks_alone() -> None:
    pieces = split_axis(40_000, 8_000, PATCH, STRIDE, KEEP, (1, 1, 2))
    assert sum(piece.stop - piece.start for piece in pieces) < 1.03 * 40_000


# Sizes


@pytest.mark.parametrize(
    ("given_tasks", "factor", "chosen"),
    [
        ([DERAIN], None, "derain"),
        ([SR2], 1.5, "sr_x2"),
        ([SR4], 2.0, "sr_x4"),
        ([SR2], 2.5, "sr_x3"),
        ([SR2], 3.01, "sr_x4"),
        ([SR2], 5.0, "sr_x2,sr_x3"),
        ([SR2], 7.5, "sr_x2,sr_x4"),
        ([DERAIN, SR2, DENOISE], 6.0, "derain,sr_x2,sr_x3,denoise_30"),
        ([DERAIN], 1.1, "derain,sr_x2"),
        ([DERAIN], 0.5, "derain"),
    ],
)
def test_the_smallest_network_that_reaches_a_size_is_taken(
    given_tasks: list[Task], factor: float | None, chosen: str
) -> None:
    assert large_enough(OFFICIAL_TASKS, Chain(tuple(given_tasks)), factor).name == chosen


def test_a_size_that_no_network_reaches_is_refused_with_the_one_that_is() -> None:
    with pytest.raises(InvalidRequest, match="a scale of 65 is not reached by sr_x2 on this server; up to 64 is"):
        large_enough(OFFICIAL_TASKS, Chain((SR2,)), 65)
    with pytest.raises(InvalidRequest, match="up to 1 is"):
        large_enough([DERAIN], Chain((DERAIN,)), 2)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (Options(), (60, 40)),
        (Options(scale=1.5), (45, 30)),
        (Options(width=100), (100, 67)),
        (Options(height=100), (150, 100)),
        (Options(width=100, height=50), (75, 50)),
        (Options(width=1), (1, 1)),
    ],
)
def test_a_picture_keeps_its_shape_in_the_size_that_is_asked_for(options: Options, size: tuple[int, int]) -> None:
    assert options.size(30, 20, Chain((SR2,))) == size


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scale": 2, "width": 9}, "scale together with width or height is not allowed"),
        ({"scale": 0}, "scale 0 is not allowed"),
        ({"scale": float("nan")}, "scale nan is not allowed"),
        ({"width": 0}, "width 0 is not allowed"),
        ({"height": -1}, "height -1 is not allowed"),
        ({"strength": 1.1}, "strength 1.1 is not allowed; give 0 to 1"),
    ],
)
def test_wrong_options_are_refused_naming_what_is_allowed(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        Options(**options)  # type: ignore[arg-type]


def test_reducing_is_antialiased_and_keeps_what_is_flat() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (40, 40))
    assert np.abs(resized(stripes, 20, 10) - 127.5)[:, 2:-2].max() < 1
    flat = np.full((31, 17, 3), 77, np.uint16)
    np.testing.assert_allclose(resized(flat, 10, 50), 77, atol=1e-4)


def test_every_view_is_another_one_and_can_be_undone() -> None:
    image = noise(5, 7, 3)
    seen = {view.of(image).tobytes() + bytes(view.of(image).shape) for view in views()}
    assert len(seen) == 8
    for view in views():
        np.testing.assert_array_equal(view.undo(view.of(image)), image)


# Through a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(write_fake_repository(tmp_path_factory.mktemp("chains") / "models")) as server:
        yield server


@pytest.fixture
def client(server: TritonServer) -> Iterator[RestorationClient]:
    with RestorationClient(server.grpc_url) as client:
        yield client


@pytest.mark.parametrize("chain", ["stamp,stamp", "5, 5 ", [5, "stamp"], ("5", "stamp")])
def test_a_chain_over_the_servers_limits_is_the_same_as_from_a_server_without(
    client: RestorationClient, chain: str | list[int | str]
) -> None:
    image = noise(290, 310, 3)
    assert image.shape[0] * image.shape[1] > MAX_INPUT_PIXELS
    expected = stamped(image, (1, 1), (STRIDE, KEEP))
    assert client.info().chain(chain).name == "stamp,stamp" and client.info().chain("sr_x2,0").scale == 4
    np.testing.assert_array_equal(client.restore(image, chain), expected)


def test_a_chain_that_limits_leave_no_room_for_is_refused(client: RestorationClient) -> None:
    image = noise(290, 310, 3)
    with pytest.raises(InvalidRequest, match="blocks of 122 pixels a side, too small for stride 40, keep 46 and 3 tas"):
        client.restore(image, "stamp,stamp,sr_x2")
    small = client.restore(image[:100, :120], "stamp,stamp,sr_x2")
    expected = stamped(image[:100, :120], (1, 1), (STRIDE, KEEP))
    np.testing.assert_array_equal(small, expected.repeat(2, 0).repeat(2, 1))


def test_stages_are_not_rounded_in_between(client: RestorationClient) -> None:
    image = noise(60, 70, 3)
    together = client.restore(image, "stamp,stamp")
    np.testing.assert_array_equal(together, stamped(image, (1, 1), (STRIDE, KEEP)))
    assert (together != client.restore(client.restore(image, "stamp"), "stamp")).any()


def test_a_chain_that_is_not_served_names_its_stage(client: RestorationClient) -> None:
    with pytest.raises(UnknownTask, match=r"^stage 2 of 3: task 'sr_x9' is not served; choose one of sr_x2"):
        client.restore(noise(4, 4, 3), "derain,sr_x9,sr_x2")
    for chain, number in (([], 0), (9 * ["derain"], 9)):
        with pytest.raises(InvalidRequest, match=f"a chain of {number} tasks is not allowed; give 1 to 8"):
            client.restore(noise(4, 4, 3), chain)


@pytest.mark.parametrize(("dtype", "shape"), [("uint8", (40, 50, 3)), ("uint16", (40, 50, 3)), ("uint8", (40, 50))])
def test_any_size_is_made_by_the_network_above_and_reduced(
    client: RestorationClient, dtype: str, shape: tuple[int, ...]
) -> None:
    image = noise(*shape, dtype=dtype)
    doubled = image.repeat(2, 0).repeat(2, 1)
    result = client.restore(image, "derain", scale=1.5)
    assert result.dtype == image.dtype and result.shape == (60, 75, *shape[2:])
    expected = resized(doubled, 75, 60)
    np.testing.assert_array_equal(result, np.rint(expected).clip(0, np.iinfo(dtype).max))
    if dtype == "uint8" and len(shape) == 3:
        pillow = np.asarray(Image.fromarray(doubled).resize((75, 60), Image.Resampling.BICUBIC))
        assert np.abs(result.astype(int) - pillow).mean() < 0.5  # which rounds twice
    assert client.restore(image, "sr_x2", width=30).shape == (24, 30, *shape[2:])
    assert client.restore(image, "sr_x2", width=30, height=12).shape == (12, 15, *shape[2:])


@pytest.mark.parametrize(("dtype", "shape"), [("uint8", (50, 61, 3)), ("uint16", (50, 61, 3)), ("uint8", (240, 250))])
def test_eight_views_are_averaged_before_they_are_rounded(
    client: RestorationClient, dtype: str, shape: tuple[int, ...]
) -> None:
    image = noise(*shape, dtype=dtype)
    colour = image if image.ndim == 3 else image[..., None].repeat(3, 2)
    results = [view.undo(stamped(view.of(colour).copy(), (1,), (STRIDE, KEEP), "float32")) for view in views()]
    mean = np.mean(np.asarray(results, np.float64), axis=0) * (257 if dtype == "uint16" else 1)
    mean = mean if image.ndim == 3 else mean.mean(axis=2)
    difference = np.abs(client.restore(image, "stamp", tta=True) - mean.clip(0, np.iinfo(dtype).max))
    assert difference.max() < 0.51 if dtype == "uint8" else difference.max() < 0.6


def test_strength_is_the_share_of_the_result_and_the_rest_is_the_image(client: RestorationClient) -> None:
    image = noise(50, 60, 3)
    np.testing.assert_array_equal(client.restore(image, "stamp", strength=1), client.restore(image, "stamp"))
    np.testing.assert_array_equal(client.restore(image, "stamp", strength=0), image)
    half = 0.5 * image + 0.5 * client.restore(image, "stamp").astype(float)
    np.testing.assert_array_equal(client.restore(image, "stamp", strength=0.5), np.rint(half))
    np.testing.assert_array_equal(
        client.restore(image, "sr_x2", strength=0), np.rint(resized(image, 120, 100)).clip(0, 255)
    )


def test_parts_hold_no_more_patches_than_the_server_takes_over_all_stages(client: RestorationClient) -> None:
    info = replace(client.info(), max_patches=45)
    for shape, chain in (((1, 30_000, 3), "derain"), ((100, 390, 3), "derain,stamp")):
        parts = Restoration(info, noise(*shape), chain, None, None).parts
        assert len(parts) > 1
        for _, (rows, columns) in parts:
            sides = rows.stop - rows.start, columns.stop - columns.start
            assert count_patches(*sides, scales=info.chain(chain).scales) <= 45


@pytest.mark.parametrize(
    ("dtype", "chain", "side", "largest"),
    [
        ("uint8", "derain", 3000, 2_000_000),
        ("uint16", "derain", 3000, 1_000_000),
        ("uint8", "sr_x2", 3000, 800_000),
        ("uint8", "derain", 1400, 2_000_000),  # one block
    ],
)
def test_parts_are_smaller_where_messages_shall_be(
    client: RestorationClient, monkeypatch: pytest.MonkeyPatch, dtype: str, chain: str, side: int, largest: int
) -> None:
    info = replace(client.info(), max_input_pixels=10**8, max_output_pixels=10**8, max_patches=10**6)
    image = np.zeros((side, side, 3), dtype)
    monkeypatch.setattr(protocol, "MESSAGE_BYTES", 10**9)
    assert len(Restoration(info, image, chain, None, None).parts) == 1
    monkeypatch.setattr(protocol, "MESSAGE_BYTES", 12_000_000)
    parts = Restoration(info, image, chain, None, None).parts
    sizes = [(rows.stop - rows.start) * (columns.stop - columns.start) for _, (rows, columns) in parts]
    assert largest / 2 < max(sizes) <= largest and sum(sizes) >= side**2


def test_parts_are_as_large_as_the_server_takes_where_smaller_ones_have_no_room_for_the_chain(
    client: RestorationClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_FEWEST_PIXELS", 50**2)
    info, chain = replace(client.info(), max_input_pixels=400**2, max_output_pixels=400**2), ["derain"] * 3
    image = np.zeros((600, 600, 3), np.uint8)
    with pytest.raises(InvalidRequest, match="raise the server's pixel limits"):
        Restoration(replace(info, max_input_pixels=50**2), image, chain, None, None)
    parts = Restoration(info, image, chain, None, None).parts
    monkeypatch.setattr(protocol, "MESSAGE_BYTES", 1)
    assert len(parts) > 1 and Restoration(info, image, chain, None, None).parts == parts
