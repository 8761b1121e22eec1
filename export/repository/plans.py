"""Engines for a repository: the plans of engines folders, and whether they are those of the parts.

Everything is known from the descriptions beside the plans (`engines/metadata.py`), so a plan that does not fit is
refused here, on any machine, and not by a server on the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipt_triton.export.engines.library import library_of
from ipt_triton.export.engines.metadata import (
    EngineError,
    EngineMetadata,
    check_plan,
    plan_path,
    plans_beside,
    read_metadata,
)
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
    """The plans of every part, for the same compute capabilities each.

    Args:
        manifest: of the parts, whose graphs are known to be those that it speaks of.
        engines: folders that `ipt-export engines` wrote; none for no plans.

    Raises:
        RepositoryError: a plan that is missing, damaged or of other parts, or folders that do not go together; one
            sentence that says what to do.
    """
    plans: dict[str, dict[str, Plan]] = {part.name: {} for part in manifest.parts}
    for folder in engines:
        there = {part.name: plans_beside(folder / part.name) for part in manifest.parts}
        capabilities = {capability for found in there.values() for capability in found}
        missing = [
            plan_path(Path(name), capability).name
            for capability in sorted(capabilities) or ["N.N"]
            for name in there
            if capability not in there[name]
        ]
        if missing:
            raise RepositoryError(f"{folder} has no {', '.join(missing)}: {_command(parts_folder, folder)}")
        for part in manifest.parts:
            for capability, path in there[part.name].items():
                if capability in plans[part.name]:
                    other = plans[part.name][capability].path.parent
                    raise RepositoryError(
                        f"{other} and {folder} both have plans for compute capability {capability}: name one of them"
                    )
                plans[part.name][capability] = _read(path, part, manifest)
    versions = sorted({plan.metadata.version for group in plans.values() for plan in group.values()})
    if len(versions) > 1:
        raise RepositoryError(
            f"the plans were built by the versions {' and '.join(versions)} and a server has one: "
            "build all with the same"
        )
    return {name: tuple(group.values()) for name, group in plans.items()}


def _command(parts_folder: Path, folder: Path) -> str:
    return f"build them (ipt-export engines {parts_folder} --output {folder})"


def _read(path: Path, part: Part, manifest: Manifest) -> Plan:
    """Raises RepositoryError: not the plan of this part, or one that the router's batches do not fit."""
    try:
        plan = Plan(path, read_metadata(path))
        _check(plan, part, manifest)
    except OSError as error:
        raise RepositoryError(f"{error.filename} cannot be read ({error.strerror}): copy it again") from error
    except EngineError as error:
        raise RepositoryError(f"{path}: {error}") from error
    return plan


def _check(plan: Plan, part: Part, manifest: Manifest) -> None:
    """Raises EngineError: not the plan of this part, or one that the router's batches do not fit."""
    found = plan.metadata
    again = "build the engines again (ipt-export engines)"
    if found.part != part.name:
        raise EngineError(f"the description is that of {found.part}: {again}")
    if found.onnx_sha256 != part.onnx_sha256:
        raise EngineError(f"it was built from another {part.name}.onnx: {again}")
    library = library_of(manifest.runtime)
    if found.library != library:
        raise EngineError(
            f"it was built by {found.library} and the runtime {manifest.runtime} runs plans of {library}: "
            f"build it with --library {library}, or export the parts for another --runtime"
        )
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
