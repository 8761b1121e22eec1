"""What an engine is built from: parts and their reference tensors, and how TensorRT is told the precision.

Plain functions that need neither GPU nor TensorRT, on numpy alone and in Python 3.9 syntax.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ipt_triton.export.engines.library import Library
from ipt_triton.export.engines.metadata import EngineError, version_numbers
from ipt_triton.export.engines.tensorrt8 import flags_8
from ipt_triton.manifest import LARGEST_BATCH, PRECISIONS, Part, Port
from ipt_triton.reading import excerpt

ENGINE_PRECISIONS = PRECISIONS["tensorrt"]
BF16_SINCE = "8.0"
"""The first compute capability that computes in BF16."""


@dataclass(frozen=True)
class PrecisionPlan:
    """How a library is told the precision: names of network and builder flags, and whether to pin layers' types."""

    precision: str
    network_flags: tuple[str, ...]
    builder_flags: tuple[str, ...]
    cleared_flags: tuple[str, ...]
    pin_types: bool


def choose_parts(parts: Sequence[Part], only: Sequence[str]) -> tuple[Part, ...]:
    """The parts named, all of them if none is; raises EngineError for a name that is not there."""
    unknown = sorted(set(only) - {part.name for part in parts})
    if unknown:
        raise EngineError(f"there is no part {', '.join(unknown)}; there are {', '.join(p.name for p in parts)}")
    return tuple(part for part in parts if not only or part.name in only)


def plan_precision(library: Library, asked: str | None, graph: str) -> PrecisionPlan:
    """How to reach a precision with a library.

    Args:
        asked: one of `ENGINE_PRECISIONS`, None for the graph's own.
        graph: precision that the graph is typed in.

    Raises:
        EngineError: this library cannot compute this graph so; names the remedy.
    """
    precision = asked or graph
    cleared = ("TF32",) if precision == "fp32" else ()  # TF32 has 10 bits: it would miss the FP32 tolerance
    if not library.strongly_typed:
        network_flags, builder_flags = flags_8(precision, graph)
        pin = precision == graph == "fp16"
        return PrecisionPlan(precision, network_flags, builder_flags, cleared, pin_types=pin)
    if precision != graph:
        raise EngineError(
            f"{library} computes what the graph says, and the parts are {graph.upper()}: "
            f"export them with --precision {precision}, or ask for {graph}"
        )
    return PrecisionPlan(precision, ("STRONGLY_TYPED",), (), cleared, pin_types=False)


def check_capability(precision: str, capability: str) -> None:
    """Raises EngineError for a precision that a GPU does not compute in."""
    if precision == "bf16" and version_numbers(capability) < version_numbers(BF16_SINCE):
        raise EngineError(
            f"a GPU of compute capability {capability} computes no BF16, which starts with {BF16_SINCE}: "
            "export the parts with --precision fp16"
        )


def profile_shapes(
    name: str, network: Sequence[int], manifest: Sequence[int], profile: tuple[int, int, int]
) -> tuple[tuple[int, ...], ...]:
    """Smallest, optimal and largest shape of an input.

    Args:
        network: the shape that TensorRT read from the graph, -1 for what is dynamic.
        manifest: shape of one sample.

    Raises:
        EngineError: the graph's batch is fixed, or the two shapes differ.
    """
    if not network or network[0] != -1:
        raise EngineError(f"{name} has shape {list(network)}; a dynamic batch is needed: run ipt-export again")
    if len(network) != len(manifest) + 1 or any(network[i + 1] not in (-1, side) for i, side in enumerate(manifest)):
        raise EngineError(
            f"{name} has shape {list(network)} in the graph and [n, {', '.join(map(str, manifest))}] in the manifest: "
            "run ipt-export again"
        )
    return tuple((batch, *manifest) for batch in profile)


def reference_tensors(path: Path, part: Part, task: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """Inputs and expected outputs of a part, float32 [n or 1, ...]; None when there is no such file.

    Args:
        path: `samples.npz`.
        task: name of a task that the part serves, whose tensors they are.

    Raises:
        EngineError: the file lacks the part's tensors.
    """
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as samples:
            inputs, outputs = (
                {port.name: _read_rows(samples, f"{task}/{port.name}.npy", port.shape) for port in ports}
                for ports in (part.inputs, part.outputs)
            )
    except Exception as error:  # zipfile and numpy meet damaged files with errors of many kinds
        raise EngineError(f"{path} lacks tensors of {part.name} ({excerpt(error)}): run ipt-export again") from error
    return inputs, outputs


def _read_rows(samples: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a file, float32 [n, *shape]. What its header says is checked before there is memory for it."""
    with samples.open(name) as file:
        if np.lib.format.read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
            raise ValueError(f"{name} is of another version")
        rows, by_columns, kind = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
        if kind != np.float32 or by_columns or rows[1:] != shape or not 1 <= rows[0] <= LARGEST_BATCH:
            raise ValueError(f"{name} is {kind} {list(rows)}, not float32 [n, {', '.join(map(str, shape))}]")
        content = file.read(4 * math.prod(rows))
    return np.frombuffer(content, np.float32).reshape(rows)


def repeat_rows(tensor: np.ndarray, batch: int) -> np.ndarray:
    """`batch` rows, the tensor's own in turn."""
    return np.ascontiguousarray(tensor[np.arange(batch) % len(tensor)])


def random_inputs(part: Part, batch: int) -> dict[str, np.ndarray]:
    """Grey levels for IMAGE, standard normal values for the rest: enough to see whether anything is NaN."""
    generator = np.random.default_rng(0)

    def draw(port: Port) -> np.ndarray:
        size = (batch, *port.shape)
        return generator.uniform(0, 255, size) if port.name == "IMAGE" else generator.normal(size=size)

    return {port.name: draw(port).astype(np.float32) for port in part.inputs}
