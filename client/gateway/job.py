"""A job: a photo that is restored while its caller does something else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from ipt_triton.client.gateway.codec import Described, Written
from ipt_triton.client.gateway.options import Options
from ipt_triton.client.gateway.problems import ProblemDetails
from ipt_triton.client.gateway.turns import Turn

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = frozenset({"done", "failed", "cancelled"})
_EVIDENCE_S = 1.0
"""Tiles come several at once: what is left is not told from those of less time than this."""


class Size(BaseModel):
    """Of a photo, in pixels."""

    width: int
    height: int


class Output(Size):
    """A result's size and file."""

    bytes: int
    format: str


class Links(BaseModel):
    """Where a job's parts are."""

    self: str
    events: str
    result: str
    before: str
    after: str


class JobDetails(BaseModel):
    """A job as its caller sees it."""

    id: str
    state: State
    task: str
    position: int = Field(description="In the queue; 0: next, or under way.")
    tiles_done: int
    tiles: int = Field(description="0 as long as it is not known.")
    eta_s: float | None
    name: str = Field(description="Of the photo, as it was sent.")
    input: Size | None
    output: Output | None
    error: ProblemDetails | None
    created: datetime
    expires: datetime
    links: Links


@dataclass(eq=False)
class Job:
    """A job, its files and its progress.

    Attributes:
        id: 128 random bits; where there are no keys they are its secret.
        owner, account: see `keys.Caller`.
        request_id: of the request that made it.
        uploaded: name of the file, as the caller calls it.
        described: the photo.
        folder: of its files: `upload`, `result`, the restored planes, and what was made of them to be shown.
        needs: bytes on disk that it may take until it is done.
        created, expires: seconds since 1970.
        first: seconds of a clock when the first tiles were told to be done, and how many.
        fetched: its result was sent to its caller, or begun to be.
    """

    id: str
    owner: str
    account: str
    request_id: str
    uploaded: str
    options: Options
    described: Described
    folder: Path
    needs: int
    created: float
    expires: float
    ended: Literal["", "done", "failed", "cancelled"] = ""
    output: Written | None = None
    error: dict[str, Any] | None = None
    tiles_done: int = 0
    tiles: int = 0
    turn: Turn | None = None
    first: tuple[float, int] | None = None
    fetched: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    shown: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def state(self) -> State:
        """Where it is."""
        return self.ended or ("running" if self.turn is not None and self.turn.begun.is_set() else "queued")

    @property
    def upload(self) -> Path:
        """The file as it was sent."""
        return self.folder / "upload"

    def touch(self) -> None:
        """Wake those who watch it."""
        self.changed.set()
        self.changed = asyncio.Event()

    def progress(self, done: int, total: int) -> None:
        """Note how many tiles are done."""
        if done and self.first is None:
            self.first = time.monotonic(), done
        self.tiles_done, self.tiles = done, total
        self.touch()

    @property
    def eta_s(self) -> float | None:
        """Seconds until it is done, as far as tiles tell; None: unknown.

        What passed before the first tiles is not counted: sending the photo, and others whose turn it was.
        """
        if self.state != "running" or self.first is None or self.tiles_done == self.first[1]:
            return None
        began, done = self.first
        taken = time.monotonic() - began
        if taken < _EVIDENCE_S:
            return None
        return round(taken / (self.tiles_done - done) * (self.tiles - self.tiles_done), 1)

    def details(self, position: int) -> JobDetails:
        """The job as its caller sees it."""
        address = f"/v1/jobs/{self.id}"
        return JobDetails(
            id=self.id,
            state=self.state,
            task=self.options.named_task,
            position=position,
            tiles_done=self.tiles_done,
            tiles=self.tiles,
            eta_s=self.eta_s,
            name=self.uploaded,
            input=Size(width=self.described.width, height=self.described.height),
            output=None if self.output is None else Output(**asdict(self.output)),
            error=None if self.error is None else ProblemDetails(**self.error),
            created=_moment(self.created),
            expires=_moment(self.expires),
            links=Links(
                self=address, **{part: f"{address}/{part}" for part in ("events", "result", "before", "after")}
            ),
        )

    def to_record(self) -> dict[str, Any]:
        """What must outlive this process; `of_record` reads it back."""
        return {
            "owner": self.owner,
            "account": self.account,
            "request_id": self.request_id,
            "uploaded": self.uploaded,
            "options": self.options.model_dump(exclude_unset=True),
            "described": asdict(self.described),
            "needs": self.needs,
            "created": self.created,
            "expires": self.expires,
            "ended": self.ended,
            "output": None if self.output is None else asdict(self.output),
            "error": self.error,
            "tiles": self.tiles if self.ended else 0,
            "tiles_done": self.tiles_done if self.ended else 0,
        }

    @classmethod
    def of_record(cls, id: str, folder: Path, record: dict[str, Any]) -> Job:
        """A job of an earlier process."""
        output = record["output"]
        return cls(
            **{
                **record,
                "id": id,
                "folder": folder,
                "options": Options.model_validate(record["options"]),
                "described": Described(**record["described"]),
                "output": None if output is None else Written(**output),
            }
        )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds), timezone.utc)
