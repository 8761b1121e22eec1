"""What a step is trained on: tasks drawn at random, and random crops for them, from memory or from worker processes.

Everything is a function of the seed, the step and the number and size of the micro-batch within the step, so that a run
resumes without stored random states, and one process that accumulates two micro-batches sees what two processes see.
Where workers decode, each of several processes has photographs of its own; there their number counts as well.

Much of a photograph is flat and teaches little. So of several places drawn for a crop the busiest is taken, the one
with the largest mean difference of neighbours. For tasks that meet noise, blocks or rain a share of the crops is taken
as it is drawn: flat areas must come out flat.

    sampler = Sampler(OFFICIAL_TASKS, seed=0)
    feed = MemoryFeed(Store(pool, device), sampler, patch_size=48)
    for crops in feed.batches(range(100)): ...
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ipt_triton.tasks import Task
from ipt_triton.train.data.degradations import MARGINS
from ipt_triton.train.data.pool import Photograph, Pool, decode
from ipt_triton.train.errors import DataError

logger = logging.getLogger(__name__)

TURNS = 8  # rotations and reflections of a square
TRIES = 100  # files that may be unusable in a row
FLAT_SHARE = 0.25  # of the crops that are taken as they are drawn, but for super-resolution from clean pictures
CROPS_PER_FILE, FILES = 4, 8  # at most from a photograph that a worker decodes; at least in a micro-batch, if it can be


class Crops(NamedTuple):
    """Crops of one task, uint8: clean [n, 3, S, S] with the margins of `degradations` around or, from pairs, without
    them and degraded [n, 3, S / scale, S / scale]."""

    task: Task
    clean: Tensor
    degraded: Tensor | None = None


class Part(NamedTuple):
    """A micro-batch of a run: the step it belongs to, its number in that step, over all processes, and its crops."""

    step: int
    number: int
    crops: int


class Feed(Protocol):
    """Where crops come from."""

    def batches(self, parts: Iterable[Part]) -> Iterator[list[Crops]]:
        """The micro-batches asked for, in order, each a group of crops for every task in it."""
        ...


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A random generator that depends on the numbers of the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Sampler:
    """Which tasks a micro-batch trains.

    Attributes:
        tasks: to draw from.
        seed: of the draws.
        by: `batch`, one task for a whole step as in the paper (section 3.2), or `sample`, one for each crop.
        weights: how often each task is drawn, relative to the others; equally often if empty.
        busiest: places that are drawn for a crop, of which the busiest is taken.
    """

    tasks: tuple[Task, ...]
    seed: int = 0
    by: str = "batch"
    weights: tuple[float, ...] = ()
    busiest: int = 1

    def groups(self, part: Part) -> list[tuple[Task, int]]:
        """The tasks of a micro-batch with their numbers of crops."""
        shares = np.array(self.weights or [1.0] * len(self.tasks))
        shares = shares / shares.sum()
        if self.by == "batch":
            drawn = np.random.default_rng((self.seed, part.step)).choice(len(self.tasks), p=shares)
            return [(self.tasks[drawn], part.crops)]
        counts = np.random.default_rng((self.seed, part.step, part.number)).multinomial(part.crops, shares)
        return [(task, count) for task, count in zip(self.tasks, counts.tolist(), strict=True) if count]


def flat_share(task: Task) -> float:
    """Share of a task's crops that are taken as they are drawn, flat or not."""
    return 0.0 if task.kind == "sr" else FLAT_SHARE


def wide_side(task: Task, patch_size: int) -> int:
    """Side in pixels of a clean crop from which a degraded one is made, margins and all."""
    return (patch_size + 2 * MARGINS.get(task.kind, 0)) * task.scale


def busyness(crops: Tensor) -> Tensor:
    """Mean difference of neighbours in the green of uint8 crops [n, 3, S, S], in levels -> [n]."""
    green = crops[:, 1].short()
    return sum(green.diff(dim=d).abs().float().mean((1, 2)) for d in (1, 2))  # type: ignore[return-value]


class Packed:
    """Photographs of any size as one uint8 tensor [pixels, 3] on a device."""

    def __init__(self, images: Sequence[np.ndarray], device: torch.device):
        sizes = torch.tensor([i.shape[:2] for i in images])
        areas = sizes.prod(1)
        pixels = torch.empty((int(areas.sum()), 3), dtype=torch.uint8)
        starts = areas.cumsum(0) - areas
        for image, start in zip(images, starts.tolist(), strict=True):
            pixels.numpy()[start : start + image.shape[0] * image.shape[1]] = image.reshape(-1, 3)
        self.pixels, self.starts, self.sizes = pixels.to(device), starts.to(device), sizes.to(device)

    def crops(self, image: Tensor, top: Tensor, left: Tensor, turn: Tensor, side: int) -> Tensor:
        """Crops [n, 3, side, side] at places of images, rotated and reflected by `turn` in 0..7; all four are [n]."""
        rows = torch.arange(side, device=self.pixels.device)[None, :, None]
        columns = rows.transpose(1, 2)
        turn = turn[:, None, None]
        y = torch.where(turn % 2 == 1, columns, rows)
        x = torch.where(turn % 2 == 1, rows, columns)
        y = torch.where(turn // 2 % 2 == 1, side - 1 - y, y) + top[:, None, None]
        x = torch.where(turn // 4 == 1, side - 1 - x, x) + left[:, None, None]
        return self.pixels[self.starts[image, None, None] + y * self.sizes[image, 1, None, None] + x].permute(
            0, 3, 1, 2
        )


class Store:
    """A pool in the memory of the training device: crops are drawn, cut, rotated and reflected there, all at once."""

    def __init__(self, pool: Pool, device: torch.device):
        self.device = device
        self.clean = Packed(pool.images, device)
        self.degraded = None if pool.degraded is None else Packed(pool.degraded, device)
        self.scale = 1 if pool.degraded is None else pool.images[0].shape[0] // pool.degraded[0].shape[0]
        self._places: dict[int, Tensor] = {}

    def crops(self, task: Task, patch_size: int, count: int, draws: torch.Generator, busiest: int = 1) -> Crops:
        """Random crops for a task; every place in every photograph is as likely to be drawn as any other.

        Pairs are cut at the same place of both.

        Args:
            busiest: draws for each crop, of which the busiest is taken, but for `flat_share` of the crops.
        """
        if busiest > 1:
            drawn = self.crops(task, patch_size, count * busiest, draws)
            best = busyness(drawn.clean).view(count, busiest).argmax(1)
            flat = torch.rand(count, device=self.device, generator=draws) < flat_share(task)
            rows = torch.arange(count, device=self.device) * busiest + best.masked_fill(flat, 0)
            return Crops(task, drawn.clean[rows], drawn.degraded[rows] if drawn.degraded is not None else None)
        grid = self.degraded or self.clean
        side = patch_size if self.degraded else wide_side(task, patch_size)
        if side not in self._places:  # how many places there are up to each photograph
            self._places[side] = (grid.sizes - side + 1).clamp(min=0).prod(1).cumsum(0)
        places = self._places[side]
        chosen = torch.rand(count, dtype=torch.float64, device=self.device, generator=draws) * places[-1]
        chosen = torch.minimum(chosen.long(), places[-1] - 1)
        turn = torch.randint(TURNS, (count,), device=self.device, generator=draws)
        image = torch.searchsorted(places, chosen, right=True)
        sizes = grid.sizes[image]
        place = places[image] - 1 - chosen
        row_length = sizes[:, 1] - side + 1
        top, left = place // row_length, place % row_length
        clean = self.clean.crops(image, top * self.scale, left * self.scale, turn, side * self.scale)
        return Crops(task, clean, self.degraded.crops(image, top, left, turn, side) if self.degraded else None)


@dataclass
class MemoryFeed:
    """Crops from a store, cut on the training device when they are needed."""

    store: Store
    sampler: Sampler
    patch_size: int

    def batches(self, parts: Iterable[Part]) -> Iterator[list[Crops]]:
        for part in parts:
            draws = generator(self.store.device, self.sampler.seed, part.step, part.number)
            busiest = self.sampler.busiest
            yield [self.store.crops(task, self.patch_size, n, draws, busiest) for task, n in self.sampler.groups(part)]


@dataclass
class WorkerFeed:
    """Crops from files that worker processes decode ahead of time, for sets that do not fit in memory.

    Every photograph is as likely as any other; of large micro-batches it gives several crops. Files that cannot be
    read, or are too small for the crop at hand, are replaced by others, named in the log once and counted in
    `unusable`.
    """

    photographs: Sequence[Photograph]
    sampler: Sampler
    patch_size: int
    workers: int
    device: torch.device

    def __post_init__(self) -> None:
        self.unusable: set[str] = set()

    def batches(self, parts: Iterable[Part]) -> Iterator[list[Crops]]:
        """Raises DataError when a hundred files in a row are unusable."""
        loader = DataLoader(
            _Files(self),
            batch_size=None,
            sampler=parts,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_signals,
        )
        for groups, unusable in loader:
            if fresh := set(unusable) - self.unusable:
                self.unusable |= fresh
                logger.warning("left out %s: unreadable or too small; %d so far", sorted(fresh)[0], len(self.unusable))
            if groups is None:
                raise DataError(f"{TRIES} files in a row are unreadable or too small, {unusable[-1]} the last of them")
            yield [Crops(task, clean.to(self.device, non_blocking=True)) for task, clean in groups]


class _Files(Dataset[tuple[list[tuple[Task, Tensor]] | None, list[str]]]):
    """In a worker: a part of the run -> its crops, and the files that were unusable."""

    def __init__(self, feed: WorkerFeed):
        self.photographs, self.sampler, self.patch_size = feed.photographs, feed.sampler, feed.patch_size

    def __getitem__(self, part: Part) -> tuple[list[tuple[Task, Tensor]] | None, list[str]]:
        draws = np.random.default_rng((self.sampler.seed, part.step, part.number, 1))
        groups: list[tuple[Task, Tensor]] = []
        unusable: list[str] = []
        for task, count in self.sampler.groups(part):
            side = wide_side(task, self.patch_size)
            crops: list[np.ndarray] = []
            each = min(CROPS_PER_FILE, max(1, count // FILES))
            misses = 0
            while len(crops) < count and misses < TRIES:
                photograph = self.photographs[draws.integers(len(self.photographs))]
                image = decode(photograph)
                if image is None or min(image.shape[:2]) < side:
                    unusable.append(str(photograph))
                    misses += 1
                    continue
                misses = 0
                wanted = min(each, count - len(crops))
                crops += [self._crop(image, side, flat_share(task), draws) for _ in range(wanted)]
            if len(crops) < count:
                return None, unusable
            groups.append((task, torch.from_numpy(np.stack(crops))))
        return groups, unusable

    def _crop(self, image: np.ndarray, side: int, flat: float, draws: np.random.Generator) -> np.ndarray:
        """The busiest of several places of a photograph (but for the share `flat`), turned, [3, side, side]."""
        drawn = []
        for _ in range(self.sampler.busiest if draws.random() >= flat else 1):
            top, left = (int(draws.integers(size - side + 1)) for size in image.shape[:2])
            drawn.append(image[top : top + side, left : left + side].transpose(2, 0, 1))
        best = int(busyness(torch.from_numpy(np.stack(drawn))).argmax()) if len(drawn) > 1 else 0
        turn = int(draws.integers(TURNS))
        crop = np.rot90(drawn[best], turn % 4, (1, 2))
        return crop[:, :, ::-1] if turn >= 4 else crop


def _ignore_signals(_: int) -> None:
    """Workers end with their parent, which saves first when the whole group is told to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def parts_from(
    step: int, accumulate: int, crops: Callable[[int], int], rank: int = 0, processes: int = 1
) -> Iterator[Part]:
    """This process's micro-batches from a step on, without end; `crops` tells the size of those of a step."""
    for following in itertools.count(step):
        size = crops(following)
        for number in range(accumulate):
            yield Part(following, number * processes + rank, size)
