"""Frames of which only the changed parts are restored come out as whole ones do, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fake_clients import tiled
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ipt_triton.tiling import KEEP, PATCH, STRIDE, count_patches

pytest.importorskip("av", reason="videos need PyAV: pip install 'ipt-triton[video]'")

from ipt_triton.client.splitting import Block, Piece
from ipt_triton.client.video.reuse import Changes


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def patched(
    previous: np.ndarray, current: np.ndarray, blocks: list[Block], scale: int, stride: int, keep: int
) -> np.ndarray:
    """The restored `previous` with the restored blocks of `current` in their places."""
    result = tiled(previous, scale, stride, keep)
    for rows, columns in blocks:
        block = tiled(current[rows.start : rows.stop, columns.start : columns.stop], scale, stride, keep)
        result[rows.low * scale : rows.high * scale, columns.low * scale : columns.high * scale] = block[
            (rows.low - rows.start) * scale : (rows.high - rows.start) * scale,
            (columns.low - columns.start) * scale : (columns.high - columns.start) * scale,
        ]
    return result


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_frame_restored_in_its_changed_parts_is_the_frame_restored_whole(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    keep = 2 * data.draw(st.integers(1, 24))
    stride = data.draw(st.integers(1, keep))
    scale = data.draw(st.integers(1, 2))
    assume(count_patches(height, width, PATCH, stride) < 800)
    previous = noise(height, width, 0)
    current = previous.copy()
    for _ in range(data.draw(st.integers(0, 4))):
        y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        tall, wide = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
        current[y : y + tall, x : x + wide] ^= 85
    blocks = Changes(height, width, PATCH, stride, keep).blocks(previous, current)
    np.testing.assert_array_equal(
        patched(previous, current, blocks, scale, stride, keep), tiled(current, scale, stride, keep)
    )


def test_nothing_is_restored_of_a_frame_that_equals_the_one_before() -> None:
    frame = noise(200, 300, 0)
    assert Changes(200, 300, PATCH, STRIDE, KEEP).blocks(frame, frame.copy()) == []


def test_one_changed_tile_needs_itself_and_its_neighbours() -> None:
    previous = noise(480, 480, 0)
    current = previous.copy()
    current[230, 230] ^= 1
    (block,) = Changes(480, 480, PATCH, STRIDE, KEEP).blocks(previous, current)
    for piece in block:
        assert count_patches(piece.stop - piece.start, PATCH) == 3 and piece.low <= 230 < piece.high


def test_two_far_changes_are_two_blocks_and_two_close_ones_are_one() -> None:
    previous = noise(480, 480, 0)
    changes = Changes(480, 480, PATCH, STRIDE, KEEP)
    for second, number in ((450, 2), (60, 1)):
        current = previous.copy()
        current[10, 10] ^= 1
        current[second, second] ^= 1
        assert len(changes.blocks(previous, current)) == number


def test_a_frame_that_changed_everywhere_or_in_many_places_is_sent_whole() -> None:
    previous = noise(480, 480, 0)
    changes = Changes(480, 480, PATCH, STRIDE, KEEP)
    scattered = previous.copy()
    scattered[::80, ::80] ^= 1
    for current in (noise(480, 480, 1), scattered):
        assert changes.blocks(previous, current) == [Block(Piece(0, 480, 0, 480), Piece(0, 480, 0, 480))]


@pytest.mark.parametrize("height, width", [(1, 1), (20, 300), (48, 48)])
def test_narrow_frames_are_one_tile_along_their_short_side(height: int, width: int) -> None:
    previous = np.zeros((height, width), np.uint16)
    current = previous.copy()
    current[-1, -1] = 1
    (block,) = Changes(height, width, PATCH, STRIDE, KEEP).blocks(previous, current)
    assert block.rows == Piece(0, height, 0, height)
