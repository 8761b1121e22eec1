"""The router outside of Triton, before a network that mixes things up: a picture is right, or it is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_triton import InferenceResponse, Request, Tensor, TritonError, load_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipt_triton.board import BOARD, Board
from ipt_triton.export.repository.write import ROUTER_SOURCE
from ipt_triton.seal import SEAL, fingerprint, seal
from ipt_triton.tiling import count_patches

TASK = {"id": 3, "name": "derain", "scale": 2}
PARAMETERS = {
    "tasks": json.dumps([TASK]),
    "patch_size": 48,
    "body_instances": 2,
    "chunk": 2,
    "requests_in_flight": 3,
    "stride": 40,
    "keep": 46,
    "max_input_pixels": 10**6,
    "max_output_pixels": 10**7,
    "max_patches": 1000,
    "longest_chain": 8,
    "slots": 8,
    "first_slot": 0,
    "sealed": 1,
}


def answer(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the network is to answer: patches twice as large, and their seals."""
    restored = patches.repeat(2, axis=2).repeat(2, axis=3)
    return restored, seal(fingerprint(patches), [restored])


class Network:
    """Answers as it is told to, one word for each call, and well when no word is left."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words, self.seen = list(words), [np.full((1, 3, 48, 48), 99, np.float32)]

    def __call__(self, inputs: dict[str, np.ndarray]) -> InferenceResponse:
        patches = inputs["IMAGE"].copy()
        word = self.words.pop(0) if self.words else "well"
        earlier = next(x for x in reversed(self.seen) if not np.array_equal(x, patches))
        self.seen.append(patches)
        restored, seals = answer(patches)
        if word == "error":
            return InferenceResponse(error=TritonError("Stub process 'body_0_1' is not healthy."))
        if word == "late":  # the answer to an earlier request, of another picture perhaps
            restored, seals = answer(earlier)
        elif word == "late, as many":
            restored, seals = answer(np.resize(earlier, patches.shape))
        elif word == "pixels of another":  # memory that was given to somebody else meanwhile
            restored = answer(np.resize(earlier, patches.shape))[0]
        elif word == "half of another":
            restored[:, :, 48:] = 7
        elif word == "order":
            restored, seals = restored[::-1], seals[::-1]
        elif word == "short":
            restored, seals = restored[:-1], seals[:-1]
        elif word == "not finite":
            restored[:, 1, 50, 50] = np.nan
            seals = seal(fingerprint(patches), [restored])
        elif word == "nothing":
            restored, seals = restored * 0, seals * 0
        return InferenceResponse([Tensor("RESTORED", restored), Tensor(SEAL, seals)])


WORDS = ("well", "error", "late", "late, as many", "pixels of another", "half of another", "order", "short", "nothing")


def router(monkeypatch: pytest.MonkeyPatch, network: Callable[..., InferenceResponse], **changes: object) -> Any:
    module = load_model(ROUTER_SOURCE, monkeypatch, network)
    model = module.TritonPythonModel()
    entries = {name: {"string_value": str(value)} for name, value in {**PARAMETERS, **changes}.items()}
    config = {"parameters": entries, "instance_group": [{"count": 8}]}
    model.initialize({"model_config": json.dumps(config), "model_instance_name": "restore_0"})
    return module, model


def restore(model: Any, image: np.ndarray, **parameters: object) -> InferenceResponse:
    request = Request(["RESTORED"], IMAGE=image, TASK_ID=np.array([3], np.int32))
    request.sent = parameters
    (response,) = asyncio.run(model.execute([request]))
    return response  # type: ignore[no-any-return]


def picture(height: int = 90, width: int = 130) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_patches_are_asked_for_in_the_memory_of_the_cpu_where_tensorrt_would_leave_them_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, model = router(monkeypatch, Network([]))
    restore(model, picture())
    assert {request["preferred_memory"] for request in module.asked} == {("CPU", 0)}


@given(words=st.lists(st.sampled_from(WORDS), max_size=10))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_picture_is_right_or_refused_whatever_the_network_mixes_up(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    _, model = router(monkeypatch, Network(words))
    image = picture()
    response = restore(model, image)
    error = response.error()
    if error is None:
        assert np.array_equal(response["RESTORED"], image.repeat(2, axis=0).repeat(2, axis=1))
    else:
        assert error.code == TritonError.UNAVAILABLE


@pytest.mark.parametrize("word", WORDS[1:])
def test_a_chunk_that_goes_wrong_once_is_sent_again(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    image = picture()
    asked = []
    for words in ([], ["well", word]):
        module, model = router(monkeypatch, Network(words))
        response = restore(model, image)
        assert np.array_equal(response["RESTORED"], image.repeat(2, axis=0).repeat(2, axis=1))
        asked.append(len(module.asked))
    assert asked[1] == asked[0] + 1


@pytest.mark.parametrize("word", WORDS[1:])
def test_what_goes_wrong_twice_is_refused(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    _, model = router(monkeypatch, Network(20 * [word]))
    error = restore(model, picture()).error()
    assert error is not None and error.code == TritonError.UNAVAILABLE


def test_parts_that_run_outside_of_pythons_backend_need_no_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsealed(inputs: dict[str, np.ndarray]) -> InferenceResponse:
        return InferenceResponse([Tensor("RESTORED", answer(inputs["IMAGE"])[0])])

    module, model = router(monkeypatch, unsealed, sealed=0)
    assert restore(model, picture()).error() is None
    assert {tuple(request["requested_output_names"]) for request in module.asked} == {("RESTORED",)}


def test_without_seals_such_a_mix_up_would_reach_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = router(monkeypatch, Network(["well", "late, as many"]), sealed=0)
    image = picture()
    assert not np.array_equal(restore(model, image)["RESTORED"], image.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(("chunks", "small", "gap"), [(0, 2, 0.1), (128, 2, 0.01), (0, 1, 0.01)])
def test_a_large_picture_lets_a_small_one_go_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunks: int, small: int, gap: float
) -> None:
    monkeypatch.setenv("IPT_SERVER_FOLDER", str(tmp_path))
    module, model = router(monkeypatch, Network([]))
    monkeypatch.setattr(module, "LARGE_CHUNKS", chunks)
    others = [Board(tmp_path / BOARD, slot) for slot in (5, 6)]
    asked = []

    async def ask(ensemble: str, patches: np.ndarray, side: int, passed: object) -> np.ndarray:
        asked.append(time.monotonic())
        await asyncio.sleep(0.01)
        return answer(patches)[0]

    monkeypatch.setattr(model, "_ask", ask)
    for board in others:  # as many smaller ones as bodies
        board.begin(3, small)

    async def both() -> InferenceResponse:
        request = Request(["RESTORED"], IMAGE=picture(), TASK_ID=np.array([3], np.int32))
        task = asyncio.ensure_future(model.execute([request]))
        await asyncio.sleep(0.3)
        assert not asked
        others[0].end()
        (response,) = await task
        return response  # type: ignore[no-any-return]

    image = picture()
    assert np.array_equal(asyncio.run(both())["RESTORED"], image.repeat(2, axis=0).repeat(2, axis=1))
    gaps = np.diff(asked)[:-1]  # at last it has no more left than the other one
    assert (gaps > 0.9 * gap).all()  # one chunk at a time, as long as a smaller picture is under way
    assert gap > 0.01 or gaps.min() < 0.1  # which a single patch, as of a heartbeat, leaves at that


@pytest.mark.parametrize(
    ("chunks", "lately", "largest", "most"), [(0, np.inf, 1, 2), (0, 0.0, 2, 3), (128, np.inf, 2, 3)]
)
def test_after_a_small_picture_a_large_one_goes_on_in_smaller_steps_for_a_while(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunks: int, lately: float, largest: int, most: int
) -> None:
    monkeypatch.setenv("IPT_SERVER_FOLDER", str(tmp_path))
    module, model = router(monkeypatch, Network([]))
    monkeypatch.setattr(module, "LARGE_CHUNKS", chunks)
    monkeypatch.setattr(module, "LATELY_S", lately)
    other = Board(tmp_path / BOARD, 5)
    asked, under_way = [], []

    async def ask(ensemble: str, patches: np.ndarray, side: int, passed: object) -> np.ndarray:
        if not asked:
            other.end()
        asked.append(len(patches))
        under_way.append(under_way[-1] + 1 if under_way else 1)
        await asyncio.sleep(0.001)
        under_way.append(under_way[-1] - 1)
        return answer(patches)[0]

    monkeypatch.setattr(model, "_ask", ask)
    other.begin(3, 2)
    image = picture(170, 330)
    assert np.array_equal(restore(model, image)["RESTORED"], image.repeat(2, axis=0).repeat(2, axis=1))
    assert max(asked[2:]) == largest and max(under_way) == most  # the first chunk was cut while the other was there


@pytest.mark.parametrize(("linger", "waits"), [(0.3, True), (0.0, False)])
def test_a_large_picture_waits_for_the_next_small_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, linger: float, waits: bool
) -> None:
    monkeypatch.setenv("IPT_SERVER_FOLDER", str(tmp_path))
    module, model = router(monkeypatch, Network([]))
    monkeypatch.setattr(module, "LARGE_CHUNKS", 0)
    monkeypatch.setattr(module, "LINGER_S", linger)
    monkeypatch.setattr(module, "GIVE_WAY_S", 60)
    other = Board(tmp_path / BOARD, 5)
    asked = []

    async def ask(ensemble: str, patches: np.ndarray, side: int, passed: object) -> np.ndarray:
        asked.append(time.monotonic())
        return answer(patches)[0]

    async def both() -> InferenceResponse:
        request = Request(["RESTORED"], IMAGE=image, TASK_ID=np.array([3], np.int32))
        task = asyncio.ensure_future(model.execute([request]))
        await asyncio.sleep(0.1)
        assert not asked
        other.end()
        (response,) = await task
        return response  # type: ignore[no-any-return]

    monkeypatch.setattr(model, "_ask", ask)
    other.begin(3, 2)
    image, ended = picture(170, 330), time.monotonic() + 0.1
    assert np.array_equal(asyncio.run(both())["RESTORED"], image.repeat(2, axis=0).repeat(2, axis=1))
    assert (asked[0] - ended > 0.25) == waits


def test_what_would_wait_too_long_is_refused_before_it_costs_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IPT_SERVER_FOLDER", str(tmp_path))
    module, model = router(monkeypatch, Network([]))
    other = Board(tmp_path / BOARD, 5)

    def refuse(patches: int, within: float) -> float:
        return 7.0 if within == 2.5 else 0.0

    monkeypatch.setattr(model._board, "_wait", refuse)
    error = restore(model, picture(), within_ms=2500).error()
    assert error is not None and error.code == TritonError.UNAVAILABLE
    assert error.message() == "0 photographs are under way; ask again in 7.0 s"
    assert not module.asked and other.under_way() == {}


def test_shared_memory_that_is_full_is_told_without_names_of_regions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IPT_SERVER_FOLDER", str(tmp_path))
    words = "Failed to increase the shared memory pool size for key 'ipt-serve-4026531836-3068' to 9437184 bytes"
    _, model = router(monkeypatch, lambda inputs: InferenceResponse(error=TritonError(words)))
    error = restore(model, picture()).error()
    assert error is not None and error.code == TritonError.UNAVAILABLE
    assert "no shared memory left; enlarge its /dev/shm" in error.message() and "4026531836" not in error.message()
    assert Board(tmp_path / BOARD).no_memory() == 1


@pytest.mark.parametrize("network", [Network([]), Network(20 * ["error"])])
def test_the_board_says_nothing_of_a_photograph_that_is_done_or_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: Network
) -> None:
    monkeypatch.setenv("IPT_SERVER_FOLDER", str(tmp_path))
    seen = []
    other = Board(tmp_path / BOARD, 5)

    def look(inputs: dict[str, np.ndarray]) -> InferenceResponse:
        seen.append(other.under_way()[0])
        return network(inputs)

    _, model = router(monkeypatch, look)
    restore(model, picture())
    assert {slot.task for slot in seen} == {3}
    assert other.under_way() == {}


def test_what_a_photograph_counts_is_told_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    module, model = router(monkeypatch, Network(["well", "late"]))
    before = dict(module.counted)
    assert len(before) == 1 + 2 + 2 + 1 + 4 + len(module.FAILURES) and not any(before.values())
    restore(model, picture())
    told = {key: value for key, value in module.counted.items() if value and "seconds" not in key[0]}
    assert told == {
        ("ipt_photographs_total", "derain"): 1,
        ("ipt_pixels_total", "derain"): 90 * 130,
        ("ipt_patches_total", "derain"): count_patches(90, 130, 48, 40, [1]),
    }
    assert {step for _, *labels in module.counted for step in labels[1:]} == set(module.STEPS)
    assert all(module.counted["ipt_step_seconds_total", "derain", step] > 0 for step in module.STEPS)
    assert module.counted.keys() == before.keys()


@pytest.mark.parametrize(
    ("kind", "words", "parameters"),
    [
        ("not_finite", ["not finite"], {}),
        ("part", 20 * ["error"], {}),
        ("part", 20 * ["late"], {}),
        ("invalid", [], {"within_ms": 0}),
    ],
)
def test_a_photograph_that_is_not_restored_counts_as_a_failure_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, kind: str, words: list[str], parameters: dict[str, object]
) -> None:
    module, model = router(monkeypatch, Network(words))
    assert restore(model, picture(), **parameters).error() is not None
    assert {key for key, value in module.counted.items() if value and "failures" in key[0]} == {
        ("ipt_failures_total", kind)
    }
    assert not module.counted["ipt_photographs_total", "derain"]


def test_a_photograph_is_refused_and_counted_while_the_server_stops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IPT_SERVER_FOLDER", str(tmp_path))
    module, model = router(monkeypatch, Network([]))
    (tmp_path / "stopping").touch()
    assert restore(model, picture()).error() is not None
    assert module.counted["ipt_failures_total", "stopping"] == 1


def test_a_fault_of_the_router_counts_and_is_left_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(inputs: dict[str, np.ndarray]) -> InferenceResponse:
        raise RuntimeError("broken")

    module, model = router(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="broken"):
        restore(model, picture())
    assert module.counted["ipt_failures_total", "fault"] == 1


def test_the_first_chunks_of_a_photograph_carry_its_trace_and_all_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    module, model = router(monkeypatch, Network([]))
    monkeypatch.setattr(module, "TRACED_CHUNKS", 2)
    restore(model, picture())
    carried = [request.get("trace") for request in module.asked]
    assert carried == ["its trace"] * 2 + [None] * (len(carried) - 2) and len(carried) > 2
    assert {request["request_id"] for request in module.asked} == {"the request"}


@pytest.mark.parametrize("value", [0, -5, True, "soon", float("nan"), None])
def test_a_time_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    _, model = router(monkeypatch, Network([]))
    error = restore(model, picture(), within_ms=value).error()
    assert error is not None and error.code == "INVALID_ARG" and "within_ms" in error.message()
