"""Engines for a repository: the plans of an engines folder, and whether they are those of the parts.

Everything is known from the descriptions beside the plans (`engines/metadata.py`), so a plan that does not fit is
refused here, on any machine, and not by a server on the GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipt_triton.export.engines.metadata import EngineError, EngineMetadata, check_plan, describe_path, read_metadata
from ipt_triton.export.errors import ExportError
from ipt_triton.manifest import Manifest, Part


class RepositoryError(ExportError):
    """A repository that cannot be written as asked."""


@dataclass(frozen=True)
class Plan:
    """A plan file and its description."""

    path: Path
    metadata: EngineMetadata


def read_plans(parts_folder: Path, manifest: Manifest, engines: Sequence[Path]) -> dict[str, tuple[Plan, ...]]:
    """The plans of every part, one from each engines folder.

    Args:
        engines: folders that `export/engines/build.py` wrote, each on a GPU of another compute capability.

    Raises:
        RepositoryError: no folder, a plan that is missing, damaged or of other parts, or folders that do not go
            together; one sentence that says what to do.
    """
    build = f"python export/engines/build.py {parts_folder} --output"
    if not engines:
        raise RepositoryError(
            f"a TensorRT repository needs engines: build them on the GPU machine ({build} build/engines) "
            "and name their folder with --engines"
        )
    plans: dict[str, tuple[Plan, ...]] = {part.name: () for part in manifest.parts}
    for folder in engines:
        missing = [name for name in plans if not describe_path(folder / f"{name}.plan").is_file()]
        if missing:
            raise RepositoryError(f"{folder} has no plans of {', '.join(missing)}: build them ({build} {folder})")
        for part in manifest.parts:
            path = folder / f"{part.name}.plan"
            try:
                plan = Plan(path, read_metadata(path))
                _check_file(plan, part, parts_folder / f"{part.name}.onnx", manifest)
            except OSError as error:
                raise RepositoryError(f"{error.filename} cannot be read ({error.strerror}): copy it again") from error
            except EngineError as error:
                raise RepositoryError(f"{path}: {error}") from error
            plans[part.name] += (plan,)
    _check_together(plans, engines)
    return plans


def max_batch(plans: Sequence[Plan]) -> int:
    """The largest batch that all plans of a part take."""
    return min(plan.metadata.max_batch for plan in plans)


def _check_file(plan: Plan, part: Part, onnx: Path, manifest: Manifest) -> None:
    """Raises EngineError: not the plan of this part, or one that the router's batches do not fit."""
    found = plan.metadata
    again = "build the engines again (export/engines/build.py)"
    if found.part != part.name:
        raise EngineError(f"the description is that of {found.part}: {again}")
    if found.onnx_sha256 != hashlib.sha256(onnx.read_bytes()).hexdigest():
        raise EngineError(f"it was built from another {onnx.name} than {onnx}: {again}")
    if found.precision != manifest.precision:
        raise EngineError(
            f"it was built in {found.precision.upper()} and the parts are {manifest.precision.upper()}: build it "
            f"without --precision, or export the parts with --precision {found.precision}"
        )
    if {*found.inputs} != {*part.inputs} or {*found.outputs} != {*part.outputs}:
        raise EngineError(f"its tensors are not those of the manifest: {again}")
    low, _, high = found.profile
    if low > 1 or high < manifest.max_batch:
        raise EngineError(
            f"it was built for batches of {low} to {high} and the server sends 1 to {manifest.max_batch}: "
            f"build it with --min-batch 1 and a --max-batch of at least {manifest.max_batch}"
        )
    check_plan(plan.path.read_bytes(), found)


def _check_together(plans: Mapping[str, Sequence[Plan]], engines: Sequence[Path]) -> None:
    """Raises RepositoryError: one server could not load them all, or could not choose between two."""
    everything = [plan for group in plans.values() for plan in group]
    versions = sorted({plan.metadata.tensorrt for plan in everything})
    if len(versions) > 1:
        raise RepositoryError(
            f"the plans were built by TensorRT {' and '.join(versions)} and a server has one: build all with the same"
        )
    capabilities: dict[str, Path] = {}
    for folder in engines:
        found = sorted({p.metadata.compute_capability for p in everything if p.path.parent == folder})
        if len(found) > 1:
            raise RepositoryError(
                f"{folder} mixes plans for the compute capabilities {' and '.join(found)}: "
                "build those of each GPU into a folder of their own"
            )
        if found[0] in capabilities:
            raise RepositoryError(
                f"{capabilities[found[0]]} and {folder} are both for compute capability {found[0]}: name one of them"
            )
        capabilities[found[0]] = folder
