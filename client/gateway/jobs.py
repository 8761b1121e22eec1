"""All jobs: made, run in their turn, watched, cancelled, expired, and taken up again by the next gateway."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import get_args

from ipt_triton.client.gateway import codec
from ipt_triton.client.gateway.job import Job, JobDetails, State
from ipt_triton.client.gateway.journal import request_id
from ipt_triton.client.gateway.keys import Accounts, Caller, Charge
from ipt_triton.client.gateway.measures import Measures
from ipt_triton.client.gateway.problems import Problem, problem_of_anything
from ipt_triton.client.gateway.restoring import Restorer, Timings
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.client.gateway.spool import Room, Spool, bytes_below
from ipt_triton.client.gateway.store import Store
from ipt_triton.client.gateway.turns import Turn, Turns
from ipt_triton.client.gateway.workers import Workers

log = logging.getLogger(__name__)

_EXPIRED = "expired"
_SWEEP_S = 5.0


class Jobs:
    """The jobs of a gateway.

    An expired job is remembered for as long again, so that its caller hears what became of it.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        accounts: Accounts,
        workers: Workers,
        turns: Turns,
        restorer: Restorer,
        measures: Measures,
    ) -> None:
        self._settings, self._spool, self._accounts = settings, spool, accounts
        self._workers, self._turns, self._restorer, self._measures = workers, turns, restorer, measures
        self._store = Store(spool.database)
        self._jobs: dict[str, Job] = {}
        self._expired: dict[str, float] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._rooms: dict[str, Room] = {}
        self.stopping = False
        """Told to stop: those who watch are let go."""
        turns.watch(self._wake_waiting)

    def start(self) -> None:
        """Take up what an earlier gateway left."""
        for id, state, record in self._store:
            if state == _EXPIRED:
                self._expired[id] = record["expires"]
                continue
            try:
                job = Job.of_record(id, self._spool.jobs / id, record)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("a job of another version is dropped (%r)", error)
                self._store.delete(id)
                continue
            self._jobs[id] = job
            self._rooms[id] = room = self._spool.room(0)
            room.resize(bytes_below(job.folder), forced=True)
            if not job.ended:
                caller = Caller(job.owner, job.account, "", self._settings.requests, self._settings.megapixels)
                charge = self._accounts.open(caller, forced=True)
                charge.photo(job.described.width * job.described.height, forced=True)
                room.resize(job.needs, forced=True)
                self._begin(job, charge)
        for folder in self._spool.jobs.iterdir():
            if folder.name not in self._jobs:  # of a request that was never answered
                shutil.rmtree(folder, ignore_errors=True)

    async def close(self) -> None:
        """Stop all work; what is not done is queued for the next gateway."""
        for task in (tasks := list(self._running.values())):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._store.close()

    async def sweep(self) -> None:
        """Remove for ever what has expired."""
        while True:
            now = time.time()
            for job in [job for job in self._jobs.values() if job.ended and job.expires < now]:
                self._remove(job)
                self._expired[job.id] = now + self._settings.retention_s
                self._store.save(job.id, _EXPIRED, {"expires": self._expired[job.id]})
            for id in [id for id, until in self._expired.items() if until < now]:
                del self._expired[id]
                self._store.delete(id)
            await asyncio.sleep(min(_SWEEP_S, self._settings.retention_s))

    def add(self, job: Job, charge: Charge, room: Room) -> None:
        """Queue a new job, whose upload is in its folder. Charge and room are ours from now on."""
        self._jobs[job.id], self._rooms[job.id] = job, room
        self._save(job)
        self._begin(job, charge)

    def find(self, id: str, caller: Caller, keys: bool) -> Job:
        """A caller's job.

        Args:
            keys: callers have keys, and see the jobs of theirs alone.

        Raises:
            Problem: 404 there is none, 410 it has expired.
        """
        if id in self._expired:
            raise Problem(410, "the job has expired, and its files are deleted; send the photo again")
        job = self._jobs.get(id)
        if job is None or (keys and job.owner != caller.owner):
            raise Problem(404, "there is no such job; look at the id, and at the key")
        return job

    def details(self, job: Job) -> JobDetails:
        """A job as its caller sees it."""
        return job.details(0 if job.turn is None or job.ended else self._turns.position(job.turn))

    def count(self) -> dict[State, int]:
        """How many jobs there are, by state."""
        found = Counter(job.state for job in self._jobs.values())
        return {state: found[state] for state in get_args(State)}

    @property
    def under_way(self) -> int:
        """How many wait or are restored."""
        return len(self._running)

    def new_results(self, seconds: float) -> int:
        """How many jobs were done within the last seconds, whose callers have not fetched the results yet."""
        until = time.time() + self._settings.retention_s - seconds
        return sum(job.ended == "done" and not job.fetched and job.expires > until for job in self._jobs.values())

    async def cancel(self, job: Job) -> None:
        """Stop a job that is not done, or remove one that is; its files are gone afterwards."""
        if job.ended:
            self._remove(job)
            self._store.delete(job.id)
            return
        job.ended = "cancelled"
        task = self._running[job.id]
        task.cancel()
        await asyncio.wait({task})

    async def picture(self, job: Job, which: str) -> Path:
        """A job's photo before, or after, as every browser shows it.

        Raises:
            Problem, RestorationError: it cannot be had.
        """
        target = job.folder / f"{which}.picture"
        pixels = job.described.width * job.described.height
        async with job.shown:
            if not target.exists():
                if which == "before":
                    limit = self._settings.max_pixels
                    await self._workers.run(pixels, codec.show_upload, job.upload, target, limit)
                else:
                    output = self.output_of(job)
                    await self._workers.run(output.width * output.height, codec.show_result, job.folder, target)
                self._account(job)
        return target

    def output_of(self, job: Job) -> codec.Written:
        """A job's result.

        Raises:
            Problem: 409 there is none yet, or none will be; 410 it was cancelled.
        """
        if job.output is None:
            if job.ended == "cancelled":
                raise Problem(410, "the job was cancelled, and its files are deleted; send the photo again")
            raise Problem(409, f"the job is {job.state} and has no result; GET /v1/jobs/{{id}} tells more")
        return job.output

    def _begin(self, job: Job, charge: Charge) -> None:
        task = asyncio.create_task(self._run(job))
        self._running[job.id] = task
        task.add_done_callback(lambda _: self._end(job, charge))  # also of one that was cancelled before it began

    async def _run(self, job: Job) -> None:
        request_id.set(job.request_id)
        timings = Timings(self._measures)

        def entered(turn: Turn) -> None:
            job.turn = turn

        try:
            job.output = await self._restorer.restore(
                job.upload, job.folder, job.described, job.options, job.owner, timings, job.progress, entered
            )
            job.ended = "done"
        except Exception as error:
            job.error = problem_of_anything(error).to_dict()
            job.ended = "failed"
        fields = {"state": job.ended, "task": job.options.task, "server_timing": timings.header()}
        log.info("job ended", extra={"fields": fields})

    def _end(self, job: Job, charge: Charge) -> None:
        """After a job was done, failed or cancelled, or was left for the next gateway."""
        charge.close()
        del self._running[job.id]
        if job.ended == "cancelled":
            shutil.rmtree(job.folder, ignore_errors=True)
        if job.ended == "failed":
            for plane in job.folder.glob("*.npy"):
                plane.unlink()
        if job.ended:
            job.expires = time.time() + self._settings.retention_s
            self._save(job)
            self._account(job)
        job.touch()

    def _account(self, job: Job) -> None:
        """Count what a job that has ended really takes."""
        if job.ended and job.id in self._rooms:
            self._rooms[job.id].resize(bytes_below(job.folder), forced=True)

    def _save(self, job: Job) -> None:
        self._store.save(job.id, job.state, job.to_record())

    def _remove(self, job: Job) -> None:
        shutil.rmtree(job.folder, ignore_errors=True)
        del self._jobs[job.id]
        self._rooms.pop(job.id).close()

    def _wake_waiting(self) -> None:
        for job in self._jobs.values():
            if not job.ended:
                job.touch()
