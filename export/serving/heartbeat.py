"""Heartbeats: a tiny picture restored for every task in turn, and what their silence means.

A task that clients are served with needs no beat. A beat goes the way of every photograph, through the router, and so
it waits when the server is overloaded. It is given up as lost only if there is no reason to wait: each look, the hope
for it is renewed while some model on its way has requests waiting and has computed something since. What follows:

- an overloaded server, however slow, is never taken for a dead one;
- a part that hangs is noticed though other tasks are being restored, unless the router itself has a queue;
- one instance that hangs among several of a model is noticed when a beat is caught in it; and if a photograph is, once
  nothing else is being restored.
"""

from __future__ import annotations

import math
import queue
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from ipt_triton.export.serving.counters import Counters
from ipt_triton.service import ROUTER, body_of, ensemble_name
from ipt_triton.tasks import Task

BEAT_S = 1.5
"""Seconds from a task's last restored picture to its next beat, if beats are quick."""
PATIENCE_S = 2.0
"""Seconds without a reason to wait after which an unanswered beat is lost, if beats are quick."""
BLIND_PATIENCE_S = 120.0
"""The same for a server without metrics, which cannot show that it is busy."""
LOST_S = 10.0
"""Seconds after which a photograph under way is lost when an idle server has computed nothing for it."""
READY_S = 15.0
"""Age of a task's last restored picture up to which the task counts as working, if beats are quick."""

_SIDE = 8
_SLOWER = 10  # a lost beat is this many times slower than usual; all beats take a tenth of the time at most
_MOST_DIFFERENCE = 16  # grey levels; batches may be computed a little otherwise than single patches
_BUSY = ("StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED", "StatusCode.CANCELLED")


@dataclass
class _Beat:
    task: Task
    way: Sequence[str]
    """The models that it goes through, the router first."""
    proven: float
    """When a picture of this task was last restored."""
    sent: float | None = None
    hope: float = 0.0
    """When there was last a reason to wait for the answer."""
    failed: bool = False
    picture: NDArray[Any] | None = None


@dataclass
class Heart:
    """Sends the beats of one server, from its warm-up to its end.

    Args:
        ways: the models behind the router for each task, by its name.
        has_metrics: whether `look` will be given counters.
    """

    grpc_url: str
    tasks: Sequence[Task]
    ways: Mapping[str, Sequence[str]]
    has_metrics: bool = True
    _beats: list[_Beat] = field(init=False)
    _took: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=5))
    _moved: dict[str, float] = field(init=False, default_factory=dict)
    _last: Counters | None = field(init=False, default=None)
    _looked: float = field(init=False)
    _restored: int = field(init=False, default=0)
    _patches: float = field(init=False, default=0.0)
    _worked: float = field(init=False)

    def __post_init__(self) -> None:
        self._looked = self._worked = time.monotonic()
        self._beats = [_Beat(t, (ROUTER, *self.ways.get(t.name, ())), self._looked) for t in self.tasks]
        self._answers: queue.SimpleQueue[tuple[_Beat, float, Any, Any]] = queue.SimpleQueue()
        self._client = triton.InferenceServerClient(self.grpc_url)
        rows, columns = np.indices((_SIDE, _SIDE))
        self._image = np.stack([30 * columns, 30 * rows, 15 * (rows + columns)], axis=-1).astype(np.uint8)

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    def overdue(self) -> str | None:
        """Say which task has not restored anything lately; None when all have."""
        now = time.monotonic()
        oldest = min(self._beats, key=lambda beat: beat.proven, default=None)
        if oldest is None or now - oldest.proven <= max(READY_S, 3 * self._rest):
            return None
        return f"{oldest.task.name} has restored nothing for {now - oldest.proven:.0f} s"

    def look(self, counters: Counters | None, busy: bool) -> str | None:
        """Take the answers that came, send the beats that are due; return what is wrong with the server, or None.

        Args:
            counters: None if they could not be had.
            busy: whether the server's processes have used the CPU since the last look.
        """
        now = time.monotonic()
        self._forgive(now)
        self._note(counters, busy, now)
        while not self._answers.empty():
            if fault := self._take(*self._answers.get()):
                return fault
        for beat in self._beats:
            if beat.sent is None and (beat.failed or now - beat.proven > self._rest):
                self._send(beat, now)
            if counters is not None and beat.sent is not None:
                beat.hope = max([beat.hope, *(self._moved.get(m, 0) for m in beat.way if counters.waiting.get(m))])
            if beat.sent is not None and now - beat.hope > self._patience:
                return f"a picture for {beat.task.name} was not answered for {now - beat.sent:.1f} s"
        if counters is not None and self._is_idle_under_work(counters, busy, now):
            return f"a photograph is under way, and nothing was computed for {LOST_S:.0f} s"
        return None

    def _is_idle_under_work(self, counters: Counters, busy: bool, now: float) -> bool:
        """Whether photographs other than beats are under way and no body has computed a patch for them for long."""
        bodies = {body_of(way) for way in self.ways.values() if way}
        patches = sum(counters.computed.get(body, 0) for body in bodies) - self._restored
        beats = sum(beat.sent is not None for beat in self._beats)
        if busy or patches != self._patches or sum(counters.under_way.values()) <= beats:
            self._worked = now
        self._patches = patches
        return now - self._worked > LOST_S

    @property
    def _usual(self) -> float:
        return min(self._took, default=0.0)  # others' work makes a beat longer, never shorter

    @property
    def _rest(self) -> float:
        return max(BEAT_S, _SLOWER * len(self._beats) * self._usual)

    @property
    def _patience(self) -> float:
        return max(PATIENCE_S if self.has_metrics else BLIND_PATIENCE_S, _SLOWER * self._usual)

    def _forgive(self, now: float) -> None:
        """A pause of this process (a frozen container) was one of the server's too."""
        pause = now - self._looked
        self._looked = now
        if pause > PATIENCE_S / 2:
            self._worked += pause
            for beat in self._beats:
                beat.proven += pause
                beat.hope += pause

    def _note(self, counters: Counters | None, busy: bool, now: float) -> None:
        """Note which models have computed since the last look; the router is busy while anything of the server is."""
        if counters is None:
            return
        last, self._last = self._last, counters
        if last is None:
            return
        moved = {model for model, count in counters.computed.items() if count > last.computed.get(model, 0)}
        self._moved.update(dict.fromkeys(moved, now))
        if moved or busy:
            self._moved[ROUTER] = now
        answered = {model for model, count in counters.answered.items() if count > last.answered.get(model, 0)}
        for beat in self._beats:
            if answered >= {ROUTER, ensemble_name(beat.task.name)}:
                beat.proven = now

    def _send(self, beat: _Beat, now: float) -> None:
        inputs = [triton.InferInput("IMAGE", [_SIDE, _SIDE, 3], "UINT8"), triton.InferInput("TASK_ID", [1], "INT32")]
        inputs[0].set_data_from_numpy(self._image)
        inputs[1].set_data_from_numpy(np.array([beat.task.id], np.int32))
        # A beat that is sent again after a refusal has waited since the first.
        beat.sent, beat.hope = now, now if not beat.failed else beat.hope

        def keep(result: triton.InferResult | None, error: Any) -> None:
            self._answers.put((beat, time.monotonic(), result, error))

        self._client.async_infer(ROUTER, inputs, keep, outputs=[triton.InferRequestedOutput("RESTORED")])

    def _take(self, beat: _Beat, now: float, result: triton.InferResult | None, error: Any) -> str | None:
        sent, beat.sent = beat.sent or now, None
        failed_before, beat.failed = beat.failed, result is None
        if result is None:
            if error.status() in _BUSY:
                beat.hope = max(beat.hope, self._moved.get(ROUTER, 0))  # moving, it only has too much to do
                lost = now - beat.hope > self._patience
            else:
                lost = failed_before
            return f"pictures for {beat.task.name} fail: {error.message()}" if lost else None
        picture = result.as_numpy("RESTORED")
        if beat.picture is None:
            beat.picture = picture
        if not _alike(picture, beat.picture, _SIDE * beat.task.scale):
            return f"the picture for {beat.task.name} came back as another than before"
        beat.proven = now
        self._restored += 1
        self._took.append(now - sent)
        return None


def _alike(picture: NDArray[Any] | None, before: NDArray[Any] | None, side: int) -> bool:
    if picture is None or before is None or picture.shape != (side, side, 3):
        return False
    return math.isclose(np.abs(picture.astype(int) - before).max(), 0, abs_tol=_MOST_DIFFERENCE)
