"""The Triton model repository: parts, ensembles and the router's configuration, written from a parts folder.

Per task one ensemble `ipt_<task>` over head, body and tail; the router `restore` in front of them is handwritten
(`triton_models/restore/1/model.py`) and only gets its `config.pbtxt` and the tiling module. `restore_stream` is the
same router and tells how far it is. Parts come with their ONNX
graph and what their runtime runs: the OpenVINO runner, plans, or plans and the runner for them.

A repository for GPUs need not have plans: with its graphs, the manifest and the reference tensors it has all that is
needed to build them in place (`ipt-export engines --repository`, `ipt-serve`). Plans that were built so stay when the
same parts are exported again.

Only generated files are written, a model folder at a time (temporary, then renamed). Folders of an earlier export that
this one does not need are removed: a generated configuration carries the parameter `generated_by`, and a folder without
it is never touched. The router's configuration goes first and comes last, so a repository that was left half written is
recognised by its absence.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ipt_triton.export.engines.metadata import (
    PlanMismatch,
    describe_path,
    plan_path,
    plans_beside,
    read_metadata,
)
from ipt_triton.export.repository.configs import (
    GENERATOR,
    PLAN_STEM,
    ServingOptions,
    ensemble_config,
    is_sealed,
    model_config,
    models_of,
    router_configs,
)
from ipt_triton.export.repository.plans import Plan, RepositoryError, read_plans
from ipt_triton.files import atomic_directory, atomic_file
from ipt_triton.manifest import MANIFEST, PRECISIONS, SAMPLES, Manifest, Part
from ipt_triton.reading import sha256_of
from ipt_triton.service import ROUTER, ROUTER_FILES, STREAM, STREAM_FILES, ensemble_name

ROOM = Path(__file__).parent
HOUSE = ROOM.parents[1]  # src/ipt_triton, or what the wheel installs of it
ROUTER_SOURCE, STREAM_SOURCE = ROOM / "router.py", ROOM / "stream.py"
SEAL_SOURCE = HOUSE / "seal.py"
ENGINE_PACKAGE = "ipt_engine"
"""Package beside `runner_tensorrt.py`; not `ipt_triton`, because Triton's Python may have that one installed."""
ENGINE_SOURCES = (
    *("errors.py", "files.py", "manifest.py", "reading.py", "service.py", "tasks.py"),
    *(f"export/engines/{name}.py" for name in ("cuda", "library", "metadata", "runner")),
)
"""The runner and all that it imports of ours, in the same tree as in `ipt_triton`."""


def write_repository(
    parts_folder: Path,
    manifest: Manifest,
    repository: Path,
    options: ServingOptions,
    engines: Sequence[Path] = (),
) -> list[str]:
    """Write every generated file of the repository; returns the names of its models.

    Args:
        manifest: of the parts.
        engines: folders with plans of the parts, for the runtimes that run on a GPU.

    Raises:
        RepositoryError: graphs that are not those of the manifest, plans that are not those of the parts,
            or a folder that a model needs was not generated; nothing is written then.
    """
    runtime = manifest.runtime
    if runtime not in PRECISIONS:
        raise RepositoryError(f"runtime {runtime!r} is not one of {', '.join(PRECISIONS)}")
    if engines and runtime == "openvino":
        raise RepositoryError("the runtime openvino runs no engines: leave out --engines, or choose --runtime tensorrt")
    if not manifest.routes:
        raise RepositoryError(f"{parts_folder} serves no task: run ipt-export CHECKPOINT again")
    for part in manifest.parts:
        _check_graph(parts_folder / f"{part.name}.onnx", part)
    plans = read_plans(parts_folder, manifest, engines)
    repository.mkdir(parents=True, exist_ok=True)
    models = models_of(manifest)
    routers = router_configs(manifest, options)
    names = {model.name for model in models} | {ensemble_name(route.task.name) for route in manifest.routes}
    names |= routers.keys() - {ROUTER}
    for name in sorted(names):
        if (repository / name).exists() and not _is_generated(repository / name):
            raise RepositoryError(
                f"{repository / name} was not written by {GENERATOR}; move it away, or choose another --repository"
            )
    (repository / ROUTER / "config.pbtxt").unlink(missing_ok=True)
    for folder in repository.iterdir():
        if folder.is_dir() and folder.name not in names and folder.name != ROUTER and _is_generated(folder):
            shutil.rmtree(folder)
    _write_sources(parts_folder, manifest, repository)
    for model in models:
        with atomic_directory(repository / model.name) as folder:
            version = folder / "1"
            version.mkdir()
            if runtime == "openvino":
                shutil.copyfile(ROOM / "runner_openvino.py", version / "model.py")
                for part in model.parts:
                    shutil.copyfile(parts_folder / f"{part.name}.onnx", version / f"{part.name}.onnx")
            else:
                (part,) = model.parts
                shutil.copyfile(parts_folder / f"{part.name}.onnx", version / "model.onnx")
                _add_plans(part, plans[part.name], version, repository / part.name / "1")
            if runtime not in ("openvino", "tensorrt"):
                _add_engine_runner(version)
            if is_sealed(runtime):
                shutil.copyfile(ROOM / "part_model.py", version / "part_model.py")
                shutil.copyfile(SEAL_SOURCE, version / "seal.py")
                _keep_out_bytecode(version)
            _write(folder / "config.pbtxt", model_config(model, manifest, options))
    for route in manifest.routes:
        with atomic_directory(repository / ensemble_name(route.task.name)) as folder:
            (folder / "1").mkdir()  # Triton wants a version folder, and an ensemble has nothing to put there
            _write(folder / "config.pbtxt", ensemble_config(route, models, manifest))
    if STREAM in routers:
        with atomic_directory(repository / STREAM) as folder:
            version = folder / "1"
            version.mkdir()
            shutil.copyfile(STREAM_SOURCE, version / "model.py")
            for name in STREAM_FILES:
                shutil.copyfile(ROUTER_SOURCE if name == ROUTER_SOURCE.name else HOUSE / name, version / name)
            _keep_out_bytecode(version)
            _write(folder / "config.pbtxt", routers[STREAM])
    router = repository / ROUTER
    (router / "1").mkdir(parents=True, exist_ok=True)
    if (router / "1").resolve() != ROUTER_SOURCE.resolve().parent:
        _replace(ROUTER_SOURCE, router / "1" / "model.py")
    for name in ROUTER_FILES:
        _replace(HOUSE / name, router / "1" / name)
    with atomic_file(router / "config.pbtxt") as temporary:
        _write(temporary, routers[ROUTER])
    return [ROUTER, *sorted(names)]


def _check_graph(path: Path, part: Part) -> None:
    """Raises RepositoryError for another file than the manifest speaks of, such as one that was cut off."""
    again = "run ipt-export CHECKPOINT again, or copy the whole folder anew"
    try:
        found = sha256_of(path)
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read ({error.strerror}): {again}") from error
    if found != part.onnx_sha256:
        raise RepositoryError(f"{path} is not the file that the manifest speaks of, by its hash: {again}")


def _write_sources(parts_folder: Path, manifest: Manifest, repository: Path) -> None:
    """What engines are built from beside the graphs; Triton passes over files at this place."""
    for name in (SAMPLES, MANIFEST):
        if manifest.runtime != "openvino":
            _replace(parts_folder / name, repository / name)
        elif (repository / MANIFEST).is_file():  # of an earlier export
            (repository / name).unlink(missing_ok=True)


def _add_plans(part: Part, plans: Sequence[Plan], version: Path, there: Path) -> None:
    """Plans with their descriptions, which `export/serving/preflight_gpu.py` and the engine runner read.

    Args:
        there: the version folder of an earlier export, of which plans of the same graph are kept.
    """
    files = {plan_path(version / PLAN_STEM, plan.metadata.compute_capability): plan.path for plan in plans}
    for capability, plan in plans_beside(there / PLAN_STEM).items():
        with contextlib.suppress(PlanMismatch):
            if read_metadata(plan).onnx_sha256 == part.onnx_sha256:
                files.setdefault(plan_path(version / PLAN_STEM, capability), plan)
    for target, source in files.items():
        shutil.copyfile(source, target)
        shutil.copyfile(describe_path(source), describe_path(target))


def _add_engine_runner(version: Path) -> None:
    shutil.copyfile(ROOM / "runner_tensorrt.py", version / "model.py")
    package = version / ENGINE_PACKAGE
    for name in ENGINE_SOURCES:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HOUSE / name, package / name)
    for folder in (package, package / "export", package / "export" / "engines"):
        (folder / "__init__.py").touch()
        _keep_out_bytecode(folder)


def _keep_out_bytecode(folder: Path) -> None:
    """A file where Python would make a folder, after which Triton takes a model for a changed one and loads it anew."""
    (folder / "__pycache__").touch()


def _write(path: Path, config: pb.ModelConfig) -> None:
    path.write_text(text_format.MessageToString(config, as_utf8=True))


def _is_generated(folder: Path) -> bool:
    try:
        config = text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, RecursionError, text_format.ParseError):
        return False
    return config.parameters["generated_by"].string_value == GENERATOR


def _replace(source: Path, target: Path) -> None:
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)
