"""Seals: foreign, moved or overwritten rows are noticed, and rows as they were sent are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ipt_triton.seal import BrokenSeal, check_seal, fingerprint, seal


def rows(count: int, *shape: int, kind: type = np.float32, first: int = 0) -> np.ndarray:
    return np.random.default_rng(first).uniform(0, 255, (count, *shape)).astype(kind)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_rows_keep_their_fingerprints_in_any_batch_and_order(kind: type) -> None:
    x = rows(5, 3, 48, 48, kind=kind)
    numbers = fingerprint(x)
    assert len(set(numbers.tolist())) == 5
    assert np.array_equal(fingerprint(x[[3, 1]]), numbers[[3, 1]])
    assert np.array_equal(fingerprint(np.ascontiguousarray(x[:, ::-1])[:, ::-1]), numbers)  # however it lies in memory


def test_what_was_sealed_opens_and_tells_its_tags() -> None:
    features, embedding, tags = rows(4, 8, 48, 48), rows(4, 256, 72), np.arange(4) * 7
    assert np.array_equal(check_seal(seal(tags, [features, embedding]), [features, embedding]), tags)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05])
def test_a_row_that_was_partly_overwritten_is_noticed(share: float) -> None:
    features, other, tags = rows(4, 16, 48, 48), rows(1, 16, 48, 48, first=1), np.arange(4)
    seals = seal(tags, [features])
    part = int(share * features[0].size)
    features.reshape(4, -1)[2, -part:] = other.reshape(-1)[-part:]
    with pytest.raises(BrokenSeal, match="1 of 4 patches arrived as something else"):
        check_seal(seals, [features])


def test_tensors_that_changed_places_are_noticed() -> None:
    one, other, tags = rows(2, 16, 48, 48), rows(2, 16, 48, 48, first=1), np.arange(2)
    with pytest.raises(BrokenSeal):
        check_seal(seal(tags, [one, other]), [other, one])


def test_rows_without_a_seal_pass_and_have_no_tag() -> None:
    assert not check_seal(np.zeros((2, 2), np.int64), [rows(2, 3, 48, 48)]).any()


@given(arrays.arrays(np.float16, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(width=16)))
def test_any_row_has_a_fingerprint(x: np.ndarray) -> None:
    assert fingerprint(x).shape == (len(x),) and np.array_equal(fingerprint(x), fingerprint(x.copy()))
