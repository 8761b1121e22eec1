"""What a served repository says of itself: the router's name, its parameters, and the limits of a request.

The export writes these parameters into the router's configuration; the router, the launcher and the clients read them.
Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from .errors import IptError
from .reading import MAX_WHOLE, parse_json, shown
from .tasks import Task

ROUTER = "restore"
"""Name of the model that takes whole images."""

STREAM = "restore_stream"
"""Name of the model that takes them too, and tells how far it is before it answers."""

ROUTERS = (ROUTER, STREAM)

ROUTER_FILES = ("tiling.py", "board.py", "seal.py")
"""Files of the kernel that the routers import; `ipt-export` copies them beside both."""

STREAM_FILES = ("router.py", *ROUTER_FILES)
"""What the second one imports: the first one's code too."""

MAX_BATCH = 8
"""Most patches of one request to an ensemble on a CPU, and of one run of an OpenVINO part."""

GPU_BATCHES = (8, 256)
"""Within these bounds the largest batch on a GPU is chosen by memory: a power of two, see `gpu_batch`."""

GPU_CHUNK_BYTES = 128 * 2**20
"""Of GPU memory that the tensors of one chunk may take, from IMAGE to RESTORED."""

MAX_INPUT_PIXELS, MAX_OUTPUT_PIXELS = 64_000_000, 256_000_000
"""Largest image of one request, unless the export was told otherwise."""

PIXELS_PER_PATCH = 12 * 12
"""Of the largest image, by the official rule: 16 evaluations a pixel are the most work of one request."""


T = TypeVar("T", bound="ServiceInfo")


class ServiceError(IptError, ValueError):
    """A router's configuration that does not describe its tasks."""


def gpu_batch(patch_bytes: int) -> int:
    """Most patches of one request to an ensemble on a GPU.

    A GPU needs many patches at once: a kernel of a small body is over before the next one is launched.

    Args:
        patch_bytes: what the tensors of one patch take, from IMAGE to RESTORED.
    """
    batch, highest = GPU_BATCHES
    while batch < highest and 2 * batch * patch_bytes <= GPU_CHUNK_BYTES:
        batch *= 2
    return batch


def graph_batches(largest: int) -> tuple[int, ...]:
    """Batches that get a CUDA graph of their own: small ones, where launching costs most, and every eighth.

    The router's chunks are full but for those of an image's end, and the batcher joins what is left; a batch without
    a graph runs as well, kernel by kernel.
    """
    return tuple(sorted({*range(1, min(8, largest) + 1), *range(8, largest + 1, 8), largest}))


def requests_in_flight(body_instances: int) -> int:
    """Requests to an ensemble under way for one image: one for each body, and two that are on their way there.

    Answers are taken in order, so with one alone a body stood still whenever another one was late.
    """
    return body_instances + 2


def ensemble_name(task: str) -> str:
    """Name of the ensemble that restores patches of a task, by the task's name."""
    return f"ipt_{task}"


def body_of(models: Sequence[str]) -> str:
    """The model that runs the body among those of an ensemble: head, body and tail, or one that runs all three."""
    return models[len(models) // 2]


@dataclass(frozen=True)
class ServiceInfo:
    """What a server says of itself.

    Attributes:
        tasks: in the order of their ids.
        patch_size: side of the network's input in pixels.
        stride, keep: the tiling rule where a request gives none (`tiling`).
        max_input_pixels, max_output_pixels, max_patches: of one request.
        checkpoint_sha256: of the weights; several are joined by commas.
        runtime, precision: what computes, as `ipt-export` calls it.
    """

    tasks: tuple[Task, ...]
    patch_size: int
    stride: int
    keep: int
    max_input_pixels: int
    max_output_pixels: int
    max_patches: int
    checkpoint_sha256: str
    runtime: str
    precision: str

    def to_parameters(self) -> dict[str, str]:
        """Parameters of the router's configuration; `from_parameters` reads them back."""
        values = {field.name: str(getattr(self, field.name)) for field in fields(self)}
        return {**values, "tasks": json.dumps([task.to_dict() for task in self.tasks])}

    @classmethod
    def from_parameters(cls: type[T], parameters: Mapping[str, str]) -> T:
        """Read a router's parameters, of this or a newer version.

        Raises:
            ServiceError: one is missing or unreadable.
        """
        with _described():
            values: dict[str, Any] = {field.name: parameters[field.name] for field in fields(cls)}
            for name in ("patch_size", "stride", "keep", "max_input_pixels", "max_output_pixels", "max_patches"):
                values[name] = int(values[name])
                if not 1 <= values[name] < MAX_WHOLE:
                    raise ValueError(f"{name} {shown(values[name])}")
        return cls(**{**values, "tasks": served_tasks(parameters)})


def served_tasks(parameters: Mapping[str, str]) -> tuple[Task, ...]:
    """The task table of a router's parameters, of this or a newer version.

    Raises:
        ServiceError: it is missing or unreadable.
    """
    with _described():
        return tuple(Task.of_server(entry) for entry in parse_json(parameters["tasks"]))


@contextmanager
def _described() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ServiceError(f"the model {ROUTER!r} does not describe its tasks ({error!r})") from error
