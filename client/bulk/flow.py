"""Photos through Ray Data: so many processes, each with one photo at a time, and outcomes as they come.

A process takes a photo when it has done the one before, and outcomes wait for whoever takes them: nothing piles up. One
that dies is started again by Ray, and its photos are begun anew, which does no harm: results are written as a whole.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray
import ray.data

from ipt_triton.client.bulk.plan import Photo
from ipt_triton.client.bulk.worker import Attempts, Worker
from ipt_triton.client.errors import ServerUnavailable
from ipt_triton.reading import excerpt
from ipt_triton.tasks import Chain

_MOST_TOGETHER = 8
"""Photos that a process is given at once, and whose outcomes come at once."""
_STORE_BYTES = 2**27
"""Of shared memory for a Ray of our own: names and outcomes alone pass through it."""


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray, at an address or of our own on this machine, for as long as the block lasts; the one that is there already.

    Our own tells nobody of its use and has no dashboard.

    Raises:
        ServerUnavailable: it does not start, or none answers at the address.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ours: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    for last in (True,) if address else (False, True):
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **ours)
            break
        except Exception as error:  # that a machine is too slow for it is an Exception of no kind
            if last:
                where = address or "this machine"
                raise ServerUnavailable(f"Ray at {where} cannot be used: {excerpt(error)}") from error
            ray.shutdown()  # now and then one of its processes does not start
    try:
        yield
    finally:
        ray.shutdown()


class _SharedAttempts(Attempts):
    """`Attempts` in a process of their own, which all the others ask."""

    def __init__(self) -> None:
        self._actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()

    def begin(self, what: Hashable) -> int:
        return int(ray.get(self._actor.begin.remote(what)))

    def end(self, what: Hashable) -> None:
        self._actor.end.remote(what)


def outcomes(
    photos: Sequence[Photo],
    source: str,
    target: str,
    server: dict[str, Any],
    chain: Chain,
    made: str,
    args: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """What `Worker` makes of the photos, in no order, each with the `number` of its photo in the sequence.

    Args:
        made: how, for the results' history.
        args: of the command; `args.workers` processes restore.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    workers = min(args.workers, len(photos))
    together = max(1, min(_MOST_TOGETHER, len(photos) // (16 * workers)))
    rows = [{"number": number, **asdict(photo)} for number, photo in enumerate(photos)]
    attempts = _SharedAttempts()
    results = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // together)).map_batches(
        Worker,  # a class is made once in each process
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(source, target, server, chain, made, args, attempts),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=min(1.0, ray.cluster_resources().get("CPU", 1) / workers),
    )
    yield from results.iter_rows()
