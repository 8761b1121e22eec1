"""`ipt-serve` as a user runs it, and the processes below it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from helpers.support import Served

from ipt_triton.export.serving import supervise
from ipt_triton.tiling import count_patches


def inputs_of(image: np.ndarray, task: int) -> list[triton.InferInput]:
    inputs = [triton.InferInput("IMAGE", list(image.shape), "UINT8"), triton.InferInput("TASK_ID", [1], "INT32")]
    inputs[0].set_data_from_numpy(image)
    inputs[1].set_data_from_numpy(np.array([task], np.int32))
    return inputs


def parent_of(process: int) -> int | None:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[1])


def descendants(process: int) -> set[int]:
    parents = {int(e.name): parent_of(int(e.name)) for e in Path("/proc").iterdir() if e.name.isdigit()}
    found, fresh = set(), {process}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def named(processes: set[int], name: str) -> list[int]:
    """Pick the processes that run a program of that name."""
    found = []
    for process in processes:
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(Path(word.decode()).name == name for word in words[:4]):
            found.append(process)
    return found


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def computed(served: Served) -> int:
    """Patches that the body has computed since the server started."""
    with triton.InferenceServerClient(served.server.grpc_url) as connection:
        return int(connection.get_inference_statistics("body").model_stats[0].inference_count)


def check_that_nothing_is_computed_any_more(served: Served, before: int, image: np.ndarray) -> None:
    """The photograph was left: what was under way ends, and the rest is not computed.

    Args:
        before: what `computed` said before it was sent.
    """
    until(lambda: not served.server.board.under_way(), 60, "the chunks under way")
    stopped_at = computed(served)
    time.sleep(0.3)
    assert computed(served) == stopped_at
    assert stopped_at - before < count_patches(*image.shape[:2])


class Command:
    """`ipt-serve` as a user runs it, with a temporary directory of its own and all its output in one file."""

    def __init__(self, repository: Path, *arguments: str, ports: tuple[int, ...] = (0, 0, 0)) -> None:
        self.repository = repository
        self.temporary = repository.parent / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.log = repository.parent / "ipt-serve.log"
        flags = [f"--{n}-port={p}" for n, p in zip(("grpc", "metrics", "health"), ports, strict=True)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "ipt_triton.export.serving.command",
                    "--repository",
                    str(repository),
                    *flags,
                    *arguments,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.temporary)},
            )
        self.family: set[int] = set()

    def ready(self) -> str:
        """Wait for the ready line and return it; remember the processes."""
        until(lambda: "ready: " in self.output or self.process.poll() is not None, 180, "ready")
        assert self.process.poll() is None, self.output
        self.family = descendants(self.process.pid)
        return next(line for line in self.output.splitlines() if line.startswith("ready: "))

    def refresh(self) -> set[int]:
        """Remember the processes that there are now, and return them."""
        self.family = descendants(self.process.pid)
        return self.family

    def address(self, of: str) -> str:
        """An address of the ready line: `grpc`, `metrics` or `health`."""
        return re.findall(rf"{of} (\S+),", self.output)[-1]

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def regions(self) -> list[str]:
        return [path.name for path in supervise.SHARED_MEMORY.glob(f"ipt-serve-*-{self.process.pid}-*")]

    def left(self) -> list[object]:
        alive = [process for process in self.family if parent_of(process) is not None]
        return [*alive, *self.regions, *self.temporary.iterdir()]


def assert_batches_are_shared(url: str, asked: Sequence[tuple[str, np.ndarray]], times: int = 40) -> None:
    """Callers send patches [1, 3, side, side] to ensembles of tasks, again and again, alone and side by side: the body
    takes several at once, and each answer is the same."""

    def one_caller(task: str, patch: np.ndarray) -> list[np.ndarray]:
        image = triton.InferInput("IMAGE", list(patch.shape), "FP32")
        image.set_data_from_numpy(patch)
        with triton.InferenceServerClient(url) as connection:
            answers = [connection.infer(f"ipt_{task}", [image]) for _ in range(times)]
        return [answer.as_numpy("RESTORED") for answer in answers]

    def batches() -> dict[int, int]:
        with triton.InferenceServerClient(url) as connection:
            [stats] = connection.get_inference_statistics("body").model_stats
        return {batch.batch_size: batch.compute_infer.count for batch in stats.batch_stats}

    alone = [one_caller(*request)[0] for request in asked]
    before = batches()
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda request: one_caller(*request), asked))
    after = batches()
    shared = sum(count - before.get(size, 0) for size, count in after.items() if size > 1)
    assert shared > 0, f"no batch of the body held more than one patch: {after}"
    for expected, answers in zip(alone, together, strict=True):
        for answer in answers:
            np.testing.assert_array_equal(answer, expected)
