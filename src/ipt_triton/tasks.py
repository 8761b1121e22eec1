"""The task table: which restorations a model knows, their ids, names, scales and noise levels.

Ids and names are in the order of the official six-task checkpoint (huawei-noah/Pretrained-IPT). A checkpoint carries
its own table, so a file with `denoise_50` alone still calls it task 5, and nothing downstream assumes six tasks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Union, get_type_hints

from .errors import IptError
from .reading import convert, excerpt, shown

KINDS = ("sr", "derain", "denoise", "dejpeg", "deblur", "real", "auto", "paired")
SCALES = (1, 2, 3, 4)
MAX_TASKS, MAX_NAME = 64, 64
"""Most tasks of a table, and most characters of a task's name."""
LONGEST_CHAIN = 8
"""Most tasks that one picture goes through."""


class TaskError(IptError, ValueError):
    """An unknown task, or a task table that contradicts itself."""

    status = 2


@dataclass(frozen=True)
class Task:
    """One restoration task.

    Attributes:
        id: number that selects the task in a request; unique in a table, ≥ 0.
        name: name that selects the task; lower-case letters, digits and `_` (it becomes part of model names).
        kind: family of the degradation, one of `KINDS`; `real` is a chain of several, `auto` one of many or none, and
            `paired` is known by pairs of photographs alone.
        scale: output side over input side, 1 to 4.
        sigma: standard deviation of the Gaussian noise on the 0..255 scale (denoise; 0 is noise of unknown strength),
            or of the Gaussian blur in pixels (deblur); 0 for other tasks.
        quality: of JPEG, 1 to 100 (dejpeg; 0 is unknown); 0 for other tasks.
    """

    id: int
    name: str
    kind: str
    scale: int = 1
    sigma: float = 0.0
    quality: int = 0

    def __post_init__(self) -> None:
        if type(self.id) is not int or not 0 <= self.id < 2**31:
            raise TaskError(f"task id {shown(self.id)} is not a whole number ≥ 0, below 2**31")
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise TaskError(f"task name {shown(self.name)} must be lower-case letters, digits and '_', a letter first")
        if len(self.name) > MAX_NAME:
            raise TaskError(f"task name {shown(self.name)} is longer than the {MAX_NAME} characters that are allowed")
        if self.kind not in KINDS:
            raise TaskError(f"task {self.name}: kind {shown(self.kind)} is not one of {', '.join(KINDS)}")
        if type(self.scale) is not int or self.scale not in SCALES:
            raise TaskError(f"task {self.name}: scale {shown(self.scale)} is not one of {SCALES}")
        if type(self.sigma) not in (int, float) or not 0 <= self.sigma < math.inf:
            raise TaskError(f"task {self.name}: sigma {shown(self.sigma)} is negative or no number")
        if self.kind == "deblur" and self.sigma == 0:
            raise TaskError(f"task {self.name}: a blur needs a sigma above 0, in pixels")
        if type(self.quality) is not int or not 0 <= self.quality <= (100 if self.kind == "dejpeg" else 0):
            raise TaskError(
                f"task {self.name}: quality {shown(self.quality)} is not allowed; "
                "it is 0 to 100 for dejpeg and 0 otherwise"
            )

    def to_dict(self) -> dict[str, Any]:
        """The task as plain JSON values."""
        return asdict(self)

    @classmethod
    def of_server(cls, entry: Mapping[str, Any]) -> Task:
        """A task as a server describes it: a newer one may have kinds, scales and fields unknown here.

        Raises:
            KeyError, TypeError, ValueError: a field is missing, or of another type.
        """
        task = object.__new__(cls)
        values = {"scale": 1, "sigma": 0.0, "quality": 0, **entry}
        for name, kind in get_type_hints(cls).items():
            object.__setattr__(task, name, convert(kind, values[name], name))
        if task.scale < 1 or not (task.name + task.kind).isprintable():
            raise ValueError(f"scale {task.scale} of {shown(task.name)}")
        return task


OFFICIAL_TASKS: tuple[Task, ...] = (
    Task(0, "sr_x2", "sr", scale=2),
    Task(1, "sr_x3", "sr", scale=3),
    Task(2, "sr_x4", "sr", scale=4),
    Task(3, "derain", "derain"),
    Task(4, "denoise_30", "denoise", sigma=30.0),
    Task(5, "denoise_50", "denoise", sigma=50.0),
)

OPTIONAL_TASKS: tuple[Task, ...] = (
    Task(6, "denoise", "denoise"),
    Task(7, "dejpeg", "dejpeg"),
    Task(8, "real_x2", "real", scale=2),
    Task(9, "real_x4", "real", scale=4),
    Task(10, "real", "real"),
    Task(11, "auto", "auto"),
)
"""Beyond the paper, blind: trained when asked for by name."""

KNOWN_TASKS = (*OFFICIAL_TASKS, *OPTIONAL_TASKS)


TaskKey = Union[int, str, Sequence[Union[int, str]]]
"""What selects a task or a chain: an id, a name, or several in a sequence or separated by commas."""


def stage_keys(key: TaskKey) -> list[int | str]:
    """The id or name of each stage."""
    parts: Sequence[int | str] = [key] if isinstance(key, (int, str)) else key
    split = (part.split(",") if isinstance(part, str) else [part] for part in parts)
    return [name.strip() if isinstance(name, str) else name for names in split for name in names]


@dataclass(frozen=True)
class Chain:
    """Tasks that a picture goes through one after the other, without rounding in between; often a single one.

    Attributes:
        tasks: in the order of the work.
    """

    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        """As it is asked for: names, separated by commas."""
        return ",".join(task.name for task in self.tasks)

    @property
    def scales(self) -> tuple[int, ...]:
        """Of the stages."""
        return tuple(task.scale for task in self.tasks)

    @property
    def scale(self) -> int:
        """Output side over input side, of all stages together."""
        return math.prod(self.scales)


def task_table(tasks: Iterable[Task | dict[str, Any]]) -> tuple[Task, ...]:
    """Check a table (ids and names unique, not empty) and return it sorted by id.

    Raises:
        TaskError: naming the id or name that occurs twice, or an entry that is not a task.
    """
    try:
        table = sorted((t if isinstance(t, Task) else Task(**t) for t in tasks), key=lambda t: t.id)
    except TypeError as error:
        raise TaskError(f"not a task entry: {excerpt(error)}") from None
    if not 1 <= len(table) <= MAX_TASKS:
        raise TaskError(f"a task table needs at least one task and takes {MAX_TASKS}; this one has {len(table)}")
    for field in ("id", "name"):
        values = [getattr(t, field) for t in table]
        for value in values:
            if values.count(value) > 1:
                raise TaskError(f"task {field} {value!r} occurs twice; each task of a table needs its own")
    return tuple(table)


def find_task(tasks: Sequence[Task], key: int | str) -> Task:
    """The task with this id (an int, or a string of digits) or name.

    Raises:
        TaskError: naming the key and every task there is.
    """
    for task in tasks:
        if str(key) in (task.name, str(task.id)):
            return task
    known = ", ".join(f"{t.id} {t.name}" for t in tasks)
    raise TaskError(f"unknown task {key!r}; there are: {known}")
