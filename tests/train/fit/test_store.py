"""A run whose copy lies in an object store goes on from there on another machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
import torch
from helpers.store import object_store

from ipt_triton.train.fit.pretrain import main
from ipt_triton.train.fit.state import read_state
from ipt_triton.train.fit.store import RunStore
from ipt_triton.train.model.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("repeatable", "few_held_out_crops")

STORED = "s3://archive/runs/mine"


@pytest.fixture
def store() -> Iterator[s3fs.S3FileSystem]:
    with object_store() as found:
        yield found


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What a command says, asked for by `said.pop()`."""

    class Said(list[str]):
        def pop(self, *_: object) -> str:
            return capsys.readouterr().err + caplog.text

    yield Said()


def run(photos: Path, output: Path, *more: str, store: str | None = STORED) -> int:
    words = ["--data", str(photos), "--output", str(output), "--tasks", "denoise_50", "--precision", "fp32"]
    words += ["--batch", "2", "--device", "cpu", *more]
    return main(words + ["--store", store] * (store is not None))


def test_a_run_goes_on_in_another_folder_and_what_it_makes_is_in_the_store(
    store: s3fs.S3FileSystem, photos: Path, tmp_path: Path
) -> None:
    assert run(photos, tmp_path / "first", "--steps", "2", "--resume") == 1, "there is nothing yet"
    assert run(photos, tmp_path / "first", "--steps", "2") == 0
    kept = {key.removeprefix("archive/runs/mine/") for key in store.find("archive/runs/mine")}
    assert {"state.pt", "recipe.json", "checkpoint/config.json", "best/config.json"} <= kept
    assert run(photos, tmp_path / "second", "--steps", "4", "--resume") == 0
    state = read_state(tmp_path / "second" / "state.pt")
    assert state["step"] == 4 and [entry["step"] for entry in state["history"]] == [2, 4]
    store.get("archive/runs/mine/", str(tmp_path / "fetched"), recursive=True)
    assert load_checkpoint(tmp_path / "fetched" / "checkpoint").sha256 == (
        load_checkpoint(tmp_path / "second" / "checkpoint").sha256
    )
    fetched = read_state(tmp_path / "fetched" / "state.pt")
    assert all(torch.equal(tensor, fetched["model"][name]) for name, tensor in state["model"].items())
    # Its first folder is behind the store now, and goes on from there as well, with the best of the store.
    best = load_checkpoint(tmp_path / "second" / "best").sha256
    (tmp_path / "first" / "best" / "config.json").write_text("an older one")
    store_of = RunStore(STORED)
    store_of.fetch(tmp_path / "first")
    assert load_checkpoint(tmp_path / "first" / "best").sha256 == best
    assert run(photos, tmp_path / "first", "--steps", "5", "--resume") == 0
    assert read_state(tmp_path / "first" / "state.pt")["step"] == 5


def test_a_run_that_is_there_is_not_replaced(
    store: s3fs.S3FileSystem, photos: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(photos, tmp_path / "first", "--steps", "1") == 0
    assert run(photos, tmp_path / "other", "--steps", "1") == 1
    assert f"{STORED} holds a run; add --resume to continue it" in said.pop()
    assert run(photos, tmp_path / "other", "--steps", "1", "--seed", "3", store=None) == 0
    assert run(photos, tmp_path / "other", "--steps", "2", "--resume") == 1
    assert f"holds another run than {STORED}; choose another --output" in said.pop()
    # A folder that is further, because a copy failed, is copied first.
    assert run(photos, tmp_path / "first", "--steps", "2", "--resume", store=None) == 0
    assert run(photos, tmp_path / "first", "--steps", "3", "--resume") == 0
    assert f"is at step 2 and {STORED} at step 1: it is copied there" in said.pop()
    # What torchrun starts again goes on by itself, on a machine that has nothing of the run too.
    recipe = json.loads(store.cat_file("archive/runs/mine/recipe.json"))
    store.pipe_file("archive/runs/mine/recipe.json", json.dumps({**recipe, "launch": "ours"}).encode())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    assert run(photos, tmp_path / "third", "--steps", "4") == 0
    history = read_state(tmp_path / "third" / "state.pt")["history"]
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("runs/mine", "--store runs/mine is a folder"),
        ("s4://archive/mine", "s4://archive/mine cannot be used: Protocol not known: s4"),
        ("s3://nowhere/mine", "s3://nowhere/mine cannot be written: "),
    ],
)
@pytest.mark.usefixtures("store")
def test_stores_that_cannot_be_used_are_named(
    photos: Path, tmp_path: Path, said: list[str], url: str, message: str
) -> None:
    assert run(photos, tmp_path / "run", "--steps", "1", store=url) == 1
    assert message in said.pop()


def test_a_copy_that_fails_in_between_is_made_by_the_next_save(
    store: s3fs.S3FileSystem, photos: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failures = store.put_file, iter([True])

    def put_or_fail(*words: Any) -> None:
        if next(failures, False):
            raise ConnectionError("it is away")
        put(*words)

    monkeypatch.setattr(store, "put_file", put_or_fail)  # fsspec gives everyone this object
    assert run(photos, tmp_path / "run", "--steps", "2", "--interval", "0s") == 0
    assert f"{STORED} cannot be written: it is away; the next save tries again" in said.pop()
    store.get_file("archive/runs/mine/state.pt", str(tmp_path / "state.pt"))
    assert read_state(tmp_path / "state.pt")["step"] == 2
