"""Feeds: every place is as likely, pairs stay together, and seed, step and process decide what comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ipt_triton.tasks import OFFICIAL_TASKS, Task, find_task
from ipt_triton.train.data.degradations import MARGINS
from ipt_triton.train.data.feed import (
    FLAT_SHARE,
    Feed,
    MemoryFeed,
    Part,
    Sampler,
    Store,
    WorkerFeed,
    busyness,
    generator,
    parts_from,
)
from ipt_triton.train.data.pool import DataError, Photograph, Pool, find_photographs

CPU = torch.device("cpu")
SIDE = 20
PLAIN = OFFICIAL_TASKS[3]


def places(height: int, width: int, blue: int = 0) -> np.ndarray:
    """A picture whose colours tell the place."""
    picture = np.full((height, width, 3), blue, np.uint8)
    picture[..., 0], picture[..., 1] = np.mgrid[:height, :width]
    return picture


def orientations(crops: Tensor) -> set[tuple[int, ...]]:
    """Where the first row's ends lie, relative to the crop."""
    rows, columns = crops[:, 0].int(), crops[:, 1].int()
    rows, columns = rows - rows.amin((1, 2), keepdim=True), columns - columns.amin((1, 2), keepdim=True)
    ends = torch.stack([rows[:, 0, 0], rows[:, 0, -1], columns[:, 0, 0], columns[:, 0, -1]], 1)
    return {tuple(e.tolist()) for e in ends}


def test_crops_are_turned_and_flipped_pieces_and_every_place_is_as_likely() -> None:
    store = Store(Pool([places(60, 40), places(20, 20, 9), places(19, 90, 8)], ["big", "exact", "small"]), CPU)
    crops = store.crops(PLAIN, SIDE, 20000, generator(CPU, 0)).clean
    assert crops.shape == (20000, 3, SIDE, SIDE) and crops.dtype == torch.uint8
    exact = (crops[:, 2] == 9).all(2).all(1)
    assert not (crops[:, 2] == 8).any()
    assert exact.float().mean().item() == pytest.approx(1 / (41 * 21 + 1), abs=0.001)
    found = crops[~exact].int()
    tops, lefts = found[:, 0].amin((1, 2)), found[:, 1].amin((1, 2))
    assert (found[:, 0].amax((1, 2)) - tops == SIDE - 1).all() and (found[:, 1].amax((1, 2)) - lefts == SIDE - 1).all()
    counts = Counter(zip(tops.tolist(), lefts.tolist(), strict=True))
    assert len(counts) == 41 * 21 and max(counts.values()) < 60  # 23 on average
    assert len(orientations(found)) == 8
    neighbours = (found[:, 0].diff(dim=2).abs() + found[:, 1].diff(dim=2).abs()).unique()
    assert neighbours.tolist() == [1]


@pytest.mark.parametrize("scale", [1, 2])
def test_pairs_are_cut_at_the_same_place_and_turned_alike(scale: int) -> None:
    low = [places(50, 40, 1), places(30, 60, 2)]
    high = [np.repeat(np.repeat(i, scale, 0), scale, 1) for i in low]
    store = Store(Pool(high, ["a", "b"], low), CPU)
    crops = store.crops(Task(0, "x", "paired", scale), SIDE, 500, generator(CPU, 1))
    assert crops.degraded is not None and crops.degraded.shape == (500, 3, SIDE, SIDE)
    expected = crops.degraded.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert torch.equal(crops.clean, expected)
    assert len(orientations(crops.degraded)) == 8


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Photograph]:
    folder = tmp_path_factory.mktemp("files")
    for number in range(6):
        Image.fromarray(places(210, 230, number)).save(folder / f"{number}.png")
    Image.fromarray(places(60, 60, 99)).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return find_photographs([folder])


def memory(files: list[Photograph], sampler: Sampler) -> Feed:
    return MemoryFeed(Store(Pool([places(210, 230, i) for i in range(6)], list("012345")), CPU), sampler, 48)


def workers(files: list[Photograph], sampler: Sampler) -> Feed:
    return WorkerFeed(files, sampler, 48, 2, CPU)


Make = Callable[[list[Photograph], Sampler], Feed]


@pytest.mark.parametrize("make", [memory, workers])
def test_a_feed_depends_on_seed_step_and_part_alone(make: Make, files: list[Photograph]) -> None:
    feed = make(files, Sampler(OFFICIAL_TASKS, busiest=2))
    parts = list(islice(parts_from(0, 2, lambda _: 4), 6))
    whole = list(feed.batches(parts))
    later = list(feed.batches(parts[3:]))
    for (one,), (other,) in zip(whole[3:], later, strict=True):
        assert one.task == other.task and torch.equal(one.clean, other.clean)
        side = (48 + 2 * MARGINS.get(one.task.kind, 0)) * one.task.scale
        assert one.clean.shape == (4, 3, side, side)
        assert one.clean[:, 2].unique().tolist()[-1] <= 5  # of no file that is too small
    assert whole[0][0].task == whole[1][0].task and not torch.equal(whole[0][0].clean, whole[1][0].clean)
    ((other,),) = make(files, Sampler(OFFICIAL_TASKS, seed=1, busiest=2)).batches(parts[:1])
    assert other.clean.shape != whole[0][0].clean.shape or not torch.equal(other.clean, whole[0][0].clean)


def test_workers_count_unusable_files_once(files: list[Photograph], caplog: pytest.LogCaptureFixture) -> None:
    feed = workers(files, Sampler(OFFICIAL_TASKS[:1]))
    assert len(list(feed.batches(islice(parts_from(0, 1, lambda _: 8), 8)))) == 8
    assert isinstance(feed, WorkerFeed)
    assert {Path(p).name for p in feed.unusable} == {"small.png", "broken.png"}
    assert "unreadable or too small; 2 so far" in caplog.text


def test_workers_give_up_when_all_files_are_unusable(files: list[Photograph]) -> None:
    bad = [p for p in files if p.name in ("small.png", "broken.png")]
    with pytest.raises(DataError, match="100 files in a row are unreadable or too small"):
        next(iter(workers(bad, Sampler(OFFICIAL_TASKS[:1])).batches([Part(0, 0, 2)])))


def test_two_processes_see_what_one_that_accumulates_sees() -> None:
    alone = list(islice(parts_from(5, 4, lambda step: step), 8))
    shared = [list(islice(parts_from(5, 2, lambda step: step, rank, 2), 4)) for rank in (0, 1)]
    assert sorted(alone) == sorted(shared[0] + shared[1])
    assert not set(shared[0]) & set(shared[1])


def test_tasks_are_drawn_by_weight_for_a_step_or_for_each_sample() -> None:
    weights = (1.0, 3.0)
    steps = Sampler(OFFICIAL_TASKS[3:5], weights=weights)
    drawn = [steps.groups(Part(step, 0, 8)) for step in range(2000)]
    assert all(len(groups) == 1 and groups[0][1] == 8 for groups in drawn)
    share = sum(groups[0][0] == OFFICIAL_TASKS[4] for groups in drawn) / 2000
    assert share == pytest.approx(0.75, abs=0.04)
    assert [steps.groups(Part(step, 1, 8)) for step in range(50)] == drawn[:50]  # the same on all processes
    samples = Sampler(OFFICIAL_TASKS[3:5], by="sample", weights=weights)
    drawn = [samples.groups(Part(step, 0, 8)) for step in range(1000)]
    assert all(sum(count for _, count in groups) == 8 for groups in drawn)
    counts = Counter(dict.fromkeys(OFFICIAL_TASKS[3:5], 0))
    for groups in drawn:
        counts.update(dict(groups))
    assert counts[OFFICIAL_TASKS[4]] / 8000 == pytest.approx(0.75, abs=0.02)
    assert samples.groups(Part(3, 1, 8)) != drawn[3] or samples.groups(Part(4, 1, 8)) != drawn[4]


def half_busy() -> np.ndarray:
    """Noise left, one grey right."""
    picture = np.full((100, 400, 3), 128, np.uint8)
    picture[:, :200] = np.random.default_rng(0).integers(0, 256, (100, 200, 3))
    return picture


def half_busy_file(folder: Path) -> list[Photograph]:
    Image.fromarray(half_busy()).save(folder / "half.png")
    return find_photographs([folder])


@pytest.mark.parametrize("source", ["memory", "workers"])
@pytest.mark.parametrize(("name", "flat_share"), [("sr_x2", 0.0), ("denoise_50", FLAT_SHARE)])
def test_the_busiest_of_several_places_is_taken_but_for_a_share(
    tmp_path: Path, source: str, name: str, flat_share: float
) -> None:
    """Of one place drawn 4 in 9 are all grey, of 8 none in practice, but for those that are taken as they are drawn."""
    task = find_task(OFFICIAL_TASKS, name)
    parts = [Part(step, 0, 16) for step in range(16)]
    shares = []
    for busiest in (1, 8):
        sampler = Sampler((task,), busiest=busiest)
        feed: Feed = MemoryFeed(Store(Pool([half_busy()], ["half"]), CPU), sampler, 24)
        if source == "workers":
            feed = WorkerFeed(half_busy_file(tmp_path), sampler, 24, 0, CPU)
        crops = torch.cat([group.clean for (group,) in feed.batches(parts)])
        shares.append((busyness(crops) == 0).float().mean().item())
    assert shares[0] == pytest.approx(0.45, abs=0.1)
    assert shares[1] == pytest.approx(flat_share * 0.45, abs=0.05)


def test_a_worker_cuts_several_crops_from_a_photograph_of_a_large_batch_alone(files: list[Photograph]) -> None:
    """The blue of a crop is the number of its photograph."""
    good = [f for f in files if f.name not in ("small.png", "broken.png")]
    for count, each in ((4, 1), (16, 2), (64, 4)):
        ((group,),) = WorkerFeed(good, Sampler((PLAIN,)), 48, 0, CPU).batches([Part(1, 0, count)])
        photographs = group.clean[:, 2, 0, 0].view(-1, each)
        assert (photographs == photographs[:, :1]).all() and photographs[:, 0].unique().numel() > 1
