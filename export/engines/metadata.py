"""What a TensorRT plan is and where it runs: its description, and whether machine and inputs fit it.

A plan `<part>_<compute capability>.plan` lies beside its description `….plan.json`, which the builder writes. Plans for
several GPUs lie side by side. Plain functions on numpy alone, in Python 3.9 syntax: neither GPU nor TensorRT is needed
to refuse a plan with a sentence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import IptError  # relative: see runner.py
from ...manifest import Parity, Port
from ...reading import build, read_json


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
        library: what built it, a key of `library.LIBRARIES`.
        version: of the library; only the same version loads the plan.
        gpu: name of the GPU that it was built on; empty for one built ahead of time, without the card.
        compute_capability: what it runs on, such as `9.0`; plans run on no other.
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
    library: str
    version: str
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

    @property
    def built_for(self) -> str:
        """The compute capability, and the GPU if it is known."""
        return f"{self.compute_capability} ({self.gpu})" if self.gpu else self.compute_capability


@dataclass(frozen=True)
class CheckResults:
    """What is known of a new engine.

    Attributes:
        inputs, outputs: as the engine itself has them.
        layers: engine layers by the type they compute in, as the inspector or the builder tells it.
        evidence: how its precision is known, see `export.engines.checks.precision_evidence`.
        parity: per boundary batch; empty when there were no reference tensors, or when it was not run.
        ran: whether it was run, which takes a GPU of its compute capability.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: dict[str, int]
    evidence: str
    parity: tuple[Parity, ...]
    ran: bool


@dataclass(frozen=True)
class EngineMetadata(CheckResults, BuildFacts):
    """The description of a plan, the content of `<part>.plan.json`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Gpu:
    """A GPU: name, and compute capability such as `9.0`."""

    name: str
    compute_capability: str


BUILD_AGAIN = "build the engine again (ipt-export engines)"


def plan_path(stem: Path, capability: str) -> Path:
    """The file of a plan.

    Args:
        stem: folder and name, that of the part or, in a model repository, `model`.
    """
    return stem.with_name(f"{stem.name}_{capability}.plan")


def plans_beside(stem: Path) -> dict[str, Path]:
    """Plans of one stem by compute capability, in rising order; those with only a plan or only a description too."""
    found = {}
    for path in (*stem.parent.glob(f"{stem.name}_*.plan"), *stem.parent.glob(f"{stem.name}_*.plan.json")):
        plan = path.with_suffix("") if path.suffix == ".json" else path
        capability = plan.stem[len(stem.name) + 1 :]
        if re.fullmatch(r"\d+\.\d+", capability):
            found[capability] = plan
    return dict(sorted(found.items(), key=lambda item: version_numbers(item[0])))


def describe_path(plan: Path) -> Path:
    """Where the description of a plan lies: the plan's name and `.json`."""
    return plan.with_name(plan.name + ".json")


def read_metadata(plan: Path) -> EngineMetadata:
    """The description beside a plan.

    Raises:
        PlanMismatch: it is missing or cannot be read.
    """
    path = describe_path(plan)
    try:
        return build(EngineMetadata, read_json(path))
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({' '.join(str(error).split())})"
    raise PlanMismatch(f"{path}, the description of a plan, {reason}: {BUILD_AGAIN}")


def version_numbers(version: str) -> tuple[int, ...]:
    """`10.13.3.9` as (10, 13, 3, 9); what follows the numbers is dropped."""
    numbers = []
    for field in version.split("."):
        digits = "".join(c for c in field if c.isdigit())
        if digits != field:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def check_machine(facts: BuildFacts, version: str, gpu: Gpu) -> None:
    """Compare what a plan was built for with the machine.

    Args:
        version: of the library that is here.

    Raises:
        PlanMismatch: built by another version of the library, or for another GPU architecture.
    """
    if facts.version != version:
        raise PlanMismatch(
            f"the plan of {facts.part} was built by {facts.library} {facts.version} and this is {version}: "
            f"{BUILD_AGAIN}, or install the other version"
        )
    if facts.compute_capability != gpu.compute_capability:
        raise PlanMismatch(
            f"the plan of {facts.part} was built for compute capability {facts.built_for} "
            f"and this GPU, {gpu.name}, has {gpu.compute_capability}: {BUILD_AGAIN} for it"
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
