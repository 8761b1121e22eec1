"""Plan files: what they are built with, writing them, and keeping those that are up to date.

For `ipt-export engines`, on numpy alone and in Python 3.9 syntax.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ipt_triton.export.engines.inputs import ENGINE_PRECISIONS
from ipt_triton.export.engines.library import Library
from ipt_triton.export.engines.metadata import (
    EngineError,
    EngineMetadata,
    PlanMismatch,
    describe_path,
    plan_path,
    read_metadata,
)
from ipt_triton.files import atomic_file
from ipt_triton.reading import sha256_of


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        precision: one of `ENGINE_PRECISIONS`, or None for what the graph says.
        profile: smallest, optimal and largest batch.
        workspace: GiB that TensorRT may use for scratch memory, None for as much as the GPU has.
        level: builder optimisation level, 0 (quick build) to 5 (longest search); 3 is TensorRT's own default.
        timing_cache: file of measured kernel times, read before and written after each build; TensorRT for RTX
            measures none.
    """

    precision: str | None = None
    profile: tuple[int, int, int] = (1, 8, 16)
    workspace: float | None = None
    level: int = 3
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        low, optimal, high = self.profile
        if not 1 <= low <= optimal <= high:
            raise EngineError(
                f"batches {low}, {optimal}, {high}: 1 ≤ --min-batch ≤ --opt-batch ≤ --max-batch is needed"
            )
        if self.precision not in (None, *ENGINE_PRECISIONS):
            raise EngineError(f"precision {self.precision!r} is not one of {', '.join(ENGINE_PRECISIONS)}")
        if not 0 <= self.level <= 5:
            raise EngineError(f"builder level {self.level} is not within 0 to 5")


@dataclass(frozen=True)
class Folders:
    """Where parts lie and plans go.

    Attributes:
        parts: `manifest.json`, `samples.npz` and `<part>.onnx`; or a model repository, with `<part>/1/model.onnx`.
        plans: folder of the plans; None for a model repository, whose plans lie beside its graphs.
    """

    parts: Path
    plans: Path | None

    def onnx(self, part: str) -> Path:
        return self.parts / f"{part}.onnx" if self.plans else self.parts / part / "1" / "model.onnx"

    def plan(self, part: str, capability: str) -> Path:
        return plan_path(self.plans / part if self.plans else self.parts / part / "1" / "model", capability)


def write_plan(path: Path, plan: bytes, metadata: EngineMetadata) -> None:
    """Write a plan and its description, each whole or not at all; the description comes last."""
    describe_path(path).unlink(missing_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(plan)
    with atomic_file(describe_path(path)) as temporary:
        temporary.write_text(json.dumps(metadata.to_dict(), indent=2) + "\n")


def up_to_date(
    plan: Path, onnx_sha256: str, library: Library, capability: str, precision: str, options: BuildOptions, run: bool
) -> bool:
    """Whether a plan is there that a build would make again.

    Args:
        run: whether a build would run it, so that a plan that was not is built again.
    """
    try:
        there = read_metadata(plan)
    except PlanMismatch:
        return False
    wanted = (onnx_sha256, library.name, library.version, capability, precision, options.profile, options.level)
    found = (
        *(there.onnx_sha256, there.library, there.version, there.compute_capability),
        *(there.precision, there.profile, there.level),
    )
    whole = plan.is_file() and sha256_of(plan) == there.plan_sha256
    return wanted == found and whole and (there.ran or not run)


def summarise(metadata: EngineMetadata) -> str:
    """One line about an engine."""
    layers = ", ".join(f"{count} {kind}" for kind, count in sorted(metadata.layers.items()))
    worst = min((p.psnr for p in metadata.parity), default=None)
    if not metadata.ran:
        parity = "not run: there is no such GPU here"
    else:
        parity = "not compared with PyTorch" if worst is None else f"PSNR {worst:.1f} dB against PyTorch"
    doubt = "; the inspector cannot tell whether that is so" if metadata.evidence == "none" else ""
    return (
        f"{metadata.part} for {metadata.built_for}: {metadata.precision}{doubt}, layers {layers}, "
        f"{metadata.plan_bytes / 1e6:.1f} MB, {metadata.build_seconds:.1f} s, {parity}"
    )
