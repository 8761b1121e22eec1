"""What a TensorRT plan is and where it runs: its description, and whether machine and inputs fit it.

A plan `<part>.plan` lies beside its description `<part>.plan.json`, which the builder writes. Plain functions on numpy
alone, in Python 3.9 syntax: neither GPU nor TensorRT is needed to refuse a plan with a sentence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import IptError  # relative: see runner.py
from ...manifest import Parity, Port


class EngineError(IptError, RuntimeError):
    """Something that keeps an engine from being built or run; the message says what to do."""


class PlanMismatch(EngineError):
    """A plan that this TensorRT or this GPU cannot run, or that is not the one its description speaks of."""


class InputError(EngineError, ValueError):
    """Inputs of a wrong name, shape or type, or a batch that the plan was not built for."""


@dataclass(frozen=True)
class BuildFacts:
    """What a plan was built from, how, and where it runs: all that its builder knows.

    Attributes:
        part: name of the part, `head_<task>`, `body…` or `tail_<task>`.
        tensorrt: version that built the plan; only the same version loads it.
        gpu: name of the GPU that it was built on.
        compute_capability: of that GPU, such as `9.0`; plans run on no other.
        precision: `fp32`, `fp16` or `bf16`, of most of the arithmetic.
        profile: smallest, optimal and largest batch.
        level: of the builder's optimisation, 0 to 5.
        onnx_sha256, plan_sha256: of the ONNX file it was built from, and of the plan.
        plan_bytes: size of the plan.
        weight_count: floating-point numbers that the ONNX graph holds as weights.
        build_seconds: how long TensorRT took.
        flops: floating-point operations per patch; a multiply-add is two.
    """

    part: str
    tensorrt: str
    gpu: str
    compute_capability: str
    precision: str
    profile: tuple[int, int, int]
    level: int
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    weight_count: int
    build_seconds: float
    flops: int

    @property
    def max_batch(self) -> int:
        return self.profile[2]


@dataclass(frozen=True)
class CheckResults:
    """What running a new engine has shown.

    Attributes:
        inputs, outputs: as the engine itself has them.
        layers: engine layers by the type they compute in, as TensorRT's inspector tells it.
        evidence: how its precision is known, see `export.engines.checks.precision_evidence`.
        parity: per boundary batch; empty when the parts folder held no reference tensors.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: dict[str, int]
    evidence: str
    parity: tuple[Parity, ...]


@dataclass(frozen=True)
class EngineMetadata(CheckResults, BuildFacts):
    """The description of a plan, the content of `<part>.plan.json`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineMetadata:
        """Raises KeyError or TypeError when entries are missing or foreign."""
        entries = dict(values)
        for key in ("inputs", "outputs"):
            entries[key] = tuple(map(Port.from_dict, entries[key]))
        entries["parity"] = tuple(Parity(**x) for x in entries["parity"])
        low, optimal, high = entries["profile"]
        entries["profile"] = (low, optimal, high)
        return cls(**entries)


@dataclass(frozen=True)
class Gpu:
    """A GPU: name, and compute capability such as `9.0`."""

    name: str
    compute_capability: str


def describe_path(plan: Path) -> Path:
    """Where the description of a plan lies: `<part>.plan.json`."""
    return plan.with_name(plan.name + ".json")


def read_metadata(plan: Path) -> EngineMetadata:
    """The description beside a plan.

    Raises:
        PlanMismatch: it is missing or cannot be read.
    """
    path = describe_path(plan)
    try:
        return EngineMetadata.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        reason = f"cannot be read ({' '.join(str(error).split())})"
    raise PlanMismatch(f"{path}, the description of a plan, {reason}: build the engine again (export/engines/build.py)")


def version_numbers(version: str) -> tuple[int, ...]:
    """`10.13.3.9` as (10, 13, 3, 9); what follows the numbers is dropped."""
    numbers = []
    for field in version.split("."):
        digits = "".join(c for c in field if c.isdigit())
        if digits != field:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def check_machine(facts: BuildFacts, tensorrt_version: str, gpu: Gpu) -> None:
    """Compare what a plan was built for with the machine.

    Raises:
        PlanMismatch: built by another TensorRT, or for another GPU architecture.
    """
    if facts.tensorrt != tensorrt_version:
        raise PlanMismatch(
            f"the plan of {facts.part} was built by TensorRT {facts.tensorrt} and this is {tensorrt_version}: "
            "build it again with this one (export/engines/build.py), or install the other"
        )
    if facts.compute_capability != gpu.compute_capability:
        raise PlanMismatch(
            f"the plan of {facts.part} was built for compute capability {facts.compute_capability} "
            f"({facts.gpu}) and this GPU, {gpu.name}, has {gpu.compute_capability}: "
            "build it again on this GPU (export/engines/build.py)"
        )


def check_plan(plan: bytes, facts: BuildFacts) -> None:
    """Compare a plan's bytes with its description; raises PlanMismatch."""
    if hashlib.sha256(plan).hexdigest() != facts.plan_sha256:
        raise PlanMismatch(
            f"the plan of {facts.part} is not the one its description speaks of ({len(plan)} bytes, "
            f"{facts.plan_bytes} expected): copy both files again, or build the engine again"
        )


def check_inputs(inputs: Mapping[str, np.ndarray], expected: Sequence[Port], profile: tuple[int, int, int]) -> int:
    """The batch size of inputs that an engine takes.

    Raises:
        InputError: wrong names, shapes or types, batches that differ, or a batch outside the profile.
    """
    names = sorted(info.name for info in expected)
    if sorted(inputs) != names:
        raise InputError(f"the engine takes the inputs {', '.join(names)}, not {', '.join(sorted(inputs)) or 'none'}")
    batches = set()
    for info in expected:
        array = inputs[info.name]
        if array.ndim == 0 or array.shape[1:] != info.shape:
            wanted = ", ".join(("n", *(str(side) for side in info.shape)))
            raise InputError(f"{info.name} has shape {list(array.shape)}; the engine takes [{wanted}]")
        if not np.can_cast(array.dtype, np.dtype(info.dtype), casting="same_kind"):
            raise InputError(f"{info.name} is {array.dtype}; the engine takes {info.dtype}")
        batches.add(len(array))
    if len(batches) != 1:
        raise InputError(f"the inputs have different batch sizes: {sorted(batches)}")
    batch = batches.pop()
    if not profile[0] <= batch <= profile[2]:
        raise InputError(
            f"a batch of {batch} is outside the engine's profile, {profile[0]} to {profile[2]}: "
            "send another, or build the engine with other --min-batch and --max-batch"
        )
    return batch
