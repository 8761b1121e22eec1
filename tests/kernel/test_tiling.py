"""The tiler: nothing is lost or changed, whatever the size, and stride 12 keep 24 is the official rule."""

from __future__ import annotations

import ast
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.official_reference import official_whole_image
from hypothesis import given, settings
from hypothesis import strategies as st

import ipt_triton.tiling
from ipt_triton.tiling import Tiler, check_rule, count_patches, plan_axis

Network = Callable[[np.ndarray], np.ndarray]


def identity(scale: int) -> Network:
    return lambda x: x.repeat(scale, axis=2).repeat(scale, axis=3)


def stamp(scale: int, patch: int = 48) -> Network:
    """Answers depend on the place in the tile and on the whole tile; multiples of 1/8, so that sums are exact."""
    place = np.random.default_rng(scale).integers(-800, 800, (3, patch * scale, patch * scale)) / 8

    def network(x: np.ndarray) -> np.ndarray:
        whole = x.astype(np.float64).sum(axis=(1, 2, 3), keepdims=True) % 64
        return (identity(scale)(x).astype(np.float64) * 0.5 + place + whole).astype(np.float32)

    return network


def restore(tiler: Tiler, network: Network, batch: int) -> np.ndarray:
    for first, last in tiler.batches(batch):
        tiler.add(network(tiler.patches(first, last)))
    return tiler.result()


def picture(height: int, width: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    limit = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, limit, (height, width, 3), dtype, endpoint=True)


@st.composite
def rules(draw: st.DrawFn) -> tuple[int, int, int]:
    """(patch, stride, keep) that are allowed; small patches give many tiles at little cost."""
    patch = draw(st.sampled_from([4, 8, 9, 16, 48]))
    keep = 2 * draw(st.integers(1, patch // 2))
    return patch, draw(st.integers(1, keep)), keep


@settings(deadline=None, max_examples=150)
@given(st.data(), rules(), st.sampled_from(["uint8", "uint16"]), st.integers(1, 4), st.integers(1, 9))
def test_an_identity_network_gives_the_image_back_bit_for_bit(
    data: st.DataObject, rule: tuple[int, int, int], dtype: str, scale: int, batch: int
) -> None:
    patch, stride, keep = rule
    height, width = (data.draw(st.integers(1, patch + 4 * stride), label=side) for side in ("height", "width"))
    image = picture(height, width, dtype, seed=height)
    tiler = Tiler(image, scale, patch, stride, keep)
    restored = restore(tiler, identity(scale), batch)
    assert restored.dtype == image.dtype
    assert np.array_equal(restored, image.repeat(scale, axis=0).repeat(scale, axis=1))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_grey_level_survives(dtype: str) -> None:
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    image = np.repeat(levels.reshape(-1, 256)[:, :, None], 3, axis=2)
    assert np.array_equal(restore(Tiler(image, 1, stride=20, keep=48), identity(1), 8), image)


@settings(deadline=None, max_examples=40)
@given(st.data(), rules(), st.integers(1, 4), st.integers(2, 50))
def test_the_result_does_not_depend_on_the_batch_size(
    data: st.DataObject, rule: tuple[int, int, int], scale: int, batch: int
) -> None:
    patch, stride, keep = rule
    height, width = (data.draw(st.integers(1, patch + 4 * stride), label=side) for side in ("height", "width"))
    network = stamp(scale, patch)
    one, many = (
        restore(Tiler(picture(height, width), scale, patch, stride, keep), network, size) for size in (1, batch)
    )
    assert np.array_equal(one, many)


def weighted_mean(answers: np.ndarray, height: int, width: int, scale: int, rule: tuple[int, int, int]) -> np.ndarray:
    """What the rule says, patch by patch and in float64: [height * scale, width * scale, 3], not rounded."""
    patch, stride, keep = rule
    shape = max(height, patch) * scale, max(width, patch) * scale
    sums, counts = np.zeros((*shape, 3)), np.zeros((*shape, 1))
    trim = (patch - keep) // 2

    def places(side: int) -> list[tuple[int, int, int]]:
        """Start, first and last kept place of each tile, walked from the left as one would with a ruler."""
        found, start = [], 0
        while True:
            start = min(start, side - patch)
            end = start + patch == side
            found.append((start, start + (trim if start else 0), side if end else start + patch - trim))
            if end:
                return [(first * scale, low * scale, high * scale) for first, low, high in found]
            start += stride

    def weight(place: int, low: int, high: int, side: int) -> int:
        """1 at an edge of the kept part and one more with each step inwards, as far as neighbours overlap."""
        steps = [(keep - stride) * scale if 2 * stride > keep else 0]
        steps += [place - low] if low else []
        steps += [high - 1 - place] if high < side else []
        return 1 + min(steps)

    def weights(low: int, high: int, side: int) -> np.ndarray:
        return np.array([weight(place, low, high, side) for place in range(low, high)], float)

    remaining = iter(answers)
    for y, top, bottom in places(shape[0] // scale):
        for x, left, right in places(shape[1] // scale):
            answer = next(remaining).astype(np.float64).transpose(1, 2, 0)
            here = np.outer(weights(top, bottom, shape[0]), weights(left, right, shape[1]))[:, :, None]
            sums[top:bottom, left:right] += here * answer[top - y : bottom - y, left - x : right - x]
            counts[top:bottom, left:right] += here
    assert next(remaining, None) is None
    return (sums / counts)[: height * scale, : width * scale]


def assert_rounded(result: np.ndarray, exact: np.ndarray, dtype: str) -> None:
    """The result is what exact levels, 0 to 255, round to; in the float32 sums what is almost a half may become one."""
    unit = 1 if dtype == "uint8" else 257
    assert result.dtype == dtype
    np.testing.assert_allclose(result, np.clip(exact * unit, 0, 255 * unit), rtol=1e-6, atol=0.5 + 1e-4 * unit)


def thinned(rule: tuple[int, int, int]) -> tuple[int, int, int]:
    """The rule, or one with fewer tiles, so that the slow way takes no minutes."""
    patch, stride, keep = rule
    stride = max(stride, patch // 8)
    return patch, stride, keep if stride <= keep else stride + stride % 2


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60), rules())
def test_the_result_is_the_weighted_mean_of_the_kept_parts(height: int, width: int, rule: tuple[int, int, int]) -> None:
    patch, stride, keep = rule = thinned(rule)
    image, network = picture(height, width), stamp(1, patch)
    tiler = Tiler(image, 1, patch, stride, keep)
    result = restore(tiler, network, 16)
    answers = network(tiler.patches(0, tiler.count))
    expected = np.clip(np.rint(weighted_mean(answers, height, width, 1, rule)), 0, 255)
    assert np.array_equal(result, expected.astype(np.uint8))


@settings(deadline=None, max_examples=100)
@given(
    st.data(),
    rules(),
    st.sampled_from(["uint8", "uint16", "float32"]),
    st.integers(1, 4),
    st.sampled_from(["float32", "float16"]),
    st.integers(0, 2**32 - 1),
)
def test_any_answers_are_joined_as_the_slow_way_joins_them(
    data: st.DataObject, rule: tuple[int, int, int], dtype: str, scale: int, answered: str, seed: int
) -> None:
    patch, stride, keep = rule = thinned(rule)
    longest = patch + 4 * stride if patch < 48 else 70
    height, width = (data.draw(st.integers(1, longest), label=side) for side in ("height", "width"))
    rng = np.random.default_rng(seed)
    together = data.draw(st.sampled_from([1, 3000, 1 << 21]), label="bytes joined at a time")
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(ipt_triton.tiling, "_TOGETHER", together)
        tiler = Tiler(np.zeros((height, width, 3), dtype), scale, patch, stride, keep, dtype)
    answers = rng.uniform(-30, 290, (tiler.count, 3, patch * scale, patch * scale)).astype(answered)
    first = 0
    while first < tiler.count:
        number = int(rng.integers(1, 9))
        tiler.add(answers[first : first + number])
        first += number
    result, expected = tiler.result(), weighted_mean(answers, height, width, scale, rule)
    if dtype == "float32":
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-4)
        return
    assert_rounded(result, expected, dtype)


@settings(deadline=None, max_examples=60)
@given(st.data(), rules(), st.integers(1, 4), st.sampled_from([1, 500, 3000, 20_000]))
def test_the_result_does_not_depend_on_how_many_tiles_are_joined_at_a_time(
    data: st.DataObject, rule: tuple[int, int, int], scale: int, together: int
) -> None:
    patch, stride, keep = rule
    height, width = (data.draw(st.integers(1, patch + 6 * stride), label=side) for side in ("height", "width"))
    image, network = picture(height, width, "uint16"), stamp(scale, patch)
    expected = restore(Tiler(image, scale, patch, stride, keep), network, 8)
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(ipt_triton.tiling, "_TOGETHER", together)
        tiler = Tiler(image, scale, patch, stride, keep)
    assert np.array_equal(restore(tiler, network, 8), expected)


OFFICIAL_SIZES = [(48, 48), (48, 84), (84, 48), (60, 72), (60, 60), (96, 108), (132, 84)]


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), OFFICIAL_SIZES)
def test_stride_12_keep_24_is_the_official_rule_but_for_the_one_block_that_it_overwrites(
    height: int, width: int, scale: int
) -> None:
    image, network = picture(height, width, "uint16"), stamp(scale)
    ours = restore(Tiler(image, scale, stride=12, keep=24), network, 16)
    values = torch.from_numpy(image.astype(np.float32) / np.float32(257)).permute(2, 0, 1)[None]
    calls = lambda x: torch.from_numpy(network(x.numpy()).astype(np.float64))  # noqa: E731
    official = official_whole_image(values, calls, scale)[0].permute(1, 2, 0).numpy()
    assert np.isfinite(official).all()
    official = np.clip(np.rint(official * 257), 0, 65535)
    # Two orders of summation may fall on two sides of a half, so equal means within one of 65535 levels.
    differs = (np.abs(ours.astype(np.float64) - official) > 1).any(axis=2)
    block = np.zeros_like(differs)
    block[: 12 * scale, 24 * scale : 48 * scale] = True
    assert not differs[~block].any()
    if width > 48:  # else there is but one tile in a row, and nothing to average
        # Our tiles overlap up to the last 24 columns, which come from the last tile alone, there as here.
        averaged = differs[: 12 * scale, 24 * scale : min(48, width - 24) * scale]
        assert averaged.mean() > 0.9
    else:
        assert not differs.any()


def test_the_default_evaluates_a_pixel_at_most_1_8_times_from_256_pixels_a_side() -> None:
    evaluations = {side: (len(plan_axis(side)) * 48 / side) ** 2 for side in range(256, 3000)}
    assert max(evaluations.values()) <= 1.8
    assert evaluations[2999] == pytest.approx((48 / 40) ** 2, rel=0.03)
    assert Tiler(np.zeros((512, 512, 3), np.uint8), 1).count == 169
    assert len(plan_axis(512, stride=36, keep=36)) ** 2 == 196 and len(plan_axis(512, stride=12, keep=24)) ** 2 == 1600


@settings(max_examples=300)
@given(st.integers(1, 400), rules())
def test_tiles_lie_inside_and_keep_every_pixel(size: int, rule: tuple[int, int, int]) -> None:
    patch, stride, keep = rule
    spans = plan_axis(size, patch, stride, keep)
    size = max(size, patch)
    kept = np.zeros(size, int)
    for span in spans:
        assert 0 <= span.start <= span.low < span.high <= span.start + patch <= size
        assert span.high - span.low >= keep
        kept[span.low : span.high] += 1
    assert kept.min() >= 1
    assert spans[0].start == 0 and spans[-1].start == size - patch
    starts = [s.start for s in spans]
    assert all(b - a == stride for a, b in pairwise(starts[:-1]))
    if len(starts) > 1:
        assert 0 < starts[-1] - starts[-2] <= stride


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 16), st.integers(2, 4))
def test_batches_for_several_workers_are_as_many_for_each_and_alike(
    height: int, width: int, size: int, workers: int
) -> None:
    tiler = Tiler(np.zeros((height, width, 3), np.uint8), 1)
    bounds = list(tiler.batches(size, workers))
    assert [first for first, _ in bounds] == [0, *(last for _, last in bounds[:-1])] and bounds[-1][1] == tiler.count
    sizes = [last - first for first, last in bounds]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert len(sizes) % workers == 0 or len(sizes) == tiler.count


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_raises_and_names_the_patch(value: float, dtype: str) -> None:
    tiler = Tiler(picture(100, 90), 2)
    answers = identity(2)(tiler.patches(0, tiler.count))
    answers[4, 2, 95, 0] = value  # row 1, column 1
    with pytest.raises(FloatingPointError, match="NaN or Inf for the patch at row 40, column 40"):
        tiler.add(answers.astype(dtype))
    with pytest.raises(ValueError, match="only 4 of 9 patches"):
        tiler.result()


def test_answers_outside_the_range_are_clipped_and_halves_go_to_the_even_level() -> None:
    tiler = Tiler(np.zeros((48, 48, 3), np.uint8), 1)
    answers = np.zeros((1, 3, 48, 48), np.float32)
    answers[0, 0, 0, :6] = [-7.0, 300.0, 0.5, 1.5, 254.6, 1e30]
    tiler.add(answers)
    assert tiler.result()[0, :6, 0].tolist() == [0, 255, 0, 2, 255, 255]


@pytest.mark.parametrize("shape", [(1, 3, 48, 48), (1, 1, 96, 96), (3, 96, 96), (1, 3, 96, 95), (5, 3, 96, 96)])
def test_answers_of_another_shape_or_too_many_are_refused(shape: tuple[int, ...]) -> None:
    tiler = Tiler(picture(60, 60), 2)
    with pytest.raises(ValueError, match=r"do not fit: patch 0 of 4 is due, \[n, 3, 96, 96\]") as error:
        tiler.add(np.zeros(shape, np.float32))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5), np.uint8), r"shape \[5, 5\] is not allowed: it must be \[height, width, 3\]"),
        (np.zeros((5, 5, 4), np.uint8), r"shape \[5, 5, 4\]"),
        (np.zeros((5, 5, 3), np.float32), "type float32 is not allowed: it must be uint8 or uint16"),
        (np.zeros((0, 5, 3), np.uint8), "side of 0 pixels is not allowed: it must be at least 1"),
        (np.zeros((5, 0, 3), np.uint8), "side of 0 pixels"),
    ],
)
def test_what_is_no_image_is_refused_naming_what_is_allowed(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiler(image, 2)


@pytest.mark.parametrize(
    ("stride", "keep", "message"),
    [
        (12, 25, "KEEP 25 is not allowed: it must be even and from 2 to 48"),
        (12, 50, "KEEP 50 is not allowed"),
        (1, 0, "KEEP 0 is not allowed"),
        (1, -2, "KEEP -2 is not allowed"),
        (0, 24, "STRIDE 0 is not allowed: it must be from 1 to KEEP, which is 24"),
        (25, 24, "STRIDE 25 is not allowed"),
        (-1, 24, "STRIDE -1 is not allowed"),
    ],
)
def test_a_rule_that_would_leave_gaps_is_refused_naming_what_is_allowed(stride: int, keep: int, message: str) -> None:
    for call in (lambda: check_rule(stride, keep), lambda: Tiler(picture(9, 9), 1, stride=stride, keep=keep)):
        with pytest.raises(ValueError, match=message):
            call()


def traced(run: Callable[[], object]) -> int:
    """Bytes that a call holds at its peak."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_beside_the_output_does_not_grow_with_the_height() -> None:
    def beside(height: int) -> int:
        image = np.zeros((height, 300, 3), np.uint8)
        return traced(lambda: restore(Tiler(image, 2), identity(2), 4)) - 4 * image.nbytes

    low, high = beside(100), beside(1300)
    assert 0 < high < 1.05 * low


@pytest.mark.parametrize(("height", "width"), [(1, 200_000), (100_000, 1), (3, 90_000)])
def test_the_padding_of_a_narrow_image_takes_no_memory(height: int, width: int) -> None:
    image = picture(height, width)
    restored = []
    peak = traced(lambda: restored.append(restore(Tiler(image, 1), identity(1), 8)))
    assert np.array_equal(restored[0], image)
    assert peak < 3 * (image.nbytes + restored[0].nbytes) + 6 * 2**20  # padded, it would take 12 MiB and more


@given(st.integers(1, 400), st.integers(1, 400), rules())
def test_patches_are_counted_without_a_tiler(height: int, width: int, rule: tuple[int, int, int]) -> None:
    patch, stride, keep = rule
    rows, columns = (plan_axis(side, patch, stride, keep) for side in (height, width))
    assert count_patches(height, width, patch, stride) == len(rows) * len(columns)


def test_answers_that_no_sum_holds_are_clipped() -> None:
    image = np.zeros((90, 90, 3), np.uint8)
    for value, level in ((3e38, 255), (-3e38, 0)):
        tiler = Tiler(image, 1)
        tiler.add(np.full((tiler.count, 3, 48, 48), value, np.float32))
        assert (tiler.result() == level).all()


def test_the_module_runs_in_python_3_9_with_numpy_alone() -> None:
    source = Path(ipt_triton.tiling.__file__).read_text()
    imported = set()
    for node in ast.walk(ast.parse(source, feature_version=(3, 9))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


@settings(deadline=None, max_examples=60)
@given(st.data(), rules(), st.sampled_from(["uint8", "uint16"]), st.lists(st.integers(1, 2), min_size=2, max_size=3))
def test_the_stages_of_a_chain_hand_on_what_no_rounding_has_touched(
    data: st.DataObject, rule: tuple[int, int, int], dtype: str, scales: list[int]
) -> None:
    patch, stride, keep = rule = thinned(rule)
    height, width = (data.draw(st.integers(1, 40), label=side) for side in ("height", "width"))
    unit = 1 if dtype == "uint8" else 257
    image = picture(height, width, dtype)
    slow = image.astype(np.float64) / unit
    patches = 0
    for stage, scale in enumerate(scales):
        last = stage == len(scales) - 1
        tiler = Tiler(image, scale, patch, stride, keep, dtype if last else "float32")
        network = stamp(scale, patch)
        answers = network(tiler.patches(0, tiler.count))
        patches += tiler.count
        tiler.add(answers)
        slow = weighted_mean(answers, *slow.shape[:2], scale, rule)
        image = tiler.result()
        if not last:
            np.testing.assert_allclose(image, slow, rtol=1e-6, atol=1e-4)
    assert_rounded(image, slow, dtype)
    assert patches == count_patches(height, width, patch, stride, scales)


def test_a_floating_image_is_taken_only_where_the_type_of_the_result_is_named() -> None:
    image = np.array([[[0.4, 254.6, 300.0]]], np.float32)
    with pytest.raises(ValueError, match=r"type float32 is not allowed: it must be uint8 or uint16$"):
        Tiler(image, 1)
    with pytest.raises(ValueError, match="a result of type float64 is not allowed: it must be uint8 or uint16 or flo"):
        Tiler(image, 1, dtype="float64")
    rounded = restore(Tiler(image, 1, dtype="uint8"), identity(1), 1)
    assert rounded.tolist() == [[[0, 255, 255]]]
    np.testing.assert_array_equal(restore(Tiler(image, 1, dtype="float32"), identity(1), 1), image)
