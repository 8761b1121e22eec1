"""The Triton model repository: parts, ensembles and the router's configuration, written from a parts folder.

Per task one ensemble `ipt_<task>` over `head_<task>` → `body` → `tail_<task>`; the router `restore` in front of them is
handwritten (`triton_models/restore/1/model.py`) and only gets its `config.pbtxt` and the tiling module. Parts come with
what their runtime runs: the ONNX graph and the OpenVINO runner, TensorRT plans, or a plan and the runner for it.

Only generated files are written, a model folder at a time (temporary, then renamed). Folders of an earlier export that
this one does not need are removed: a generated configuration carries the parameter `generated_by`, and a folder without
it is never touched. The router's configuration goes first and comes last, so a repository that was left half written is
recognised by its absence.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ipt_triton.export.engines.metadata import describe_path
from ipt_triton.export.repository.configs import (
    GENERATOR,
    ServingOptions,
    ensemble_config,
    part_config,
    plan_file,
    router_config,
)
from ipt_triton.export.repository.plans import Plan, RepositoryError, read_plans
from ipt_triton.files import atomic_directory, atomic_file
from ipt_triton.manifest import PRECISIONS, Manifest
from ipt_triton.service import ROUTER, ensemble_name

ROOM = Path(__file__).parent
HOUSE = ROOM.parents[1]  # src/ipt_triton, or what the wheel installs of it
ROUTER_SOURCE = ROOM / "router.py"
TILING_SOURCE = HOUSE / "tiling.py"
ENGINE_PACKAGE = "ipt_engine"
"""Package beside `runner_tensorrt.py`; not `ipt_triton`, because Triton's Python may have that one installed."""
ENGINE_SOURCES = (
    *("errors.py", "manifest.py", "service.py", "tasks.py"),
    *(f"export/engines/{name}.py" for name in ("cuda", "metadata", "runner")),
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
        manifest: of the parts; those for the two TensorRT runtimes are untested on a GPU.
        engines: for these two, the folders with the parts' plans: one, or for `tensorrt` one per compute capability.

    Raises:
        RepositoryError: plans that are not those of the parts, or a folder that a model needs was not generated;
            nothing is written then.
    """
    runtime = manifest.runtime
    if runtime not in PRECISIONS:
        raise RepositoryError(f"runtime {runtime!r} is not one of {', '.join(PRECISIONS)}")
    if engines and runtime == "openvino":
        raise RepositoryError("the runtime openvino runs no engines: leave out --engines, or choose --runtime tensorrt")
    if len(engines) > 1 and runtime == "tensorrt-python":
        raise RepositoryError("the runtime tensorrt-python takes engines of one GPU: name one folder with --engines")
    plans = {} if runtime == "openvino" else read_plans(parts_folder, manifest, engines)
    repository.mkdir(parents=True, exist_ok=True)
    models = {part.name for part in manifest.parts} | {ensemble_name(route.task.name) for route in manifest.routes}
    for name in sorted(models):
        if (repository / name).exists() and not _is_generated(repository / name):
            raise RepositoryError(
                f"{repository / name} was not written by {GENERATOR}; move it away, or choose another --repository"
            )
    (repository / ROUTER / "config.pbtxt").unlink(missing_ok=True)
    for folder in repository.iterdir():
        if folder.is_dir() and folder.name not in models and folder.name != ROUTER and _is_generated(folder):
            shutil.rmtree(folder)
    configs = {p.name: part_config(p, manifest, options, plans.get(p.name, ())) for p in manifest.parts}
    for name, config in configs.items():
        with atomic_directory(repository / name) as folder:
            (folder / "1").mkdir()
            if runtime == "openvino":
                shutil.copyfile(ROOM / "runner_openvino.py", folder / "1" / "model.py")
                shutil.copyfile(parts_folder / f"{name}.onnx", folder / "1" / "model.onnx")
                _keep_out_bytecode(folder / "1")
            else:
                _add_plans(plans[name], folder / "1")
            if runtime == "tensorrt-python":
                _add_engine_runner(folder / "1")
            _write(folder / "config.pbtxt", config)
    for route in manifest.routes:
        with atomic_directory(repository / ensemble_name(route.task.name)) as folder:
            (folder / "1").mkdir()  # Triton wants a version folder, and an ensemble has nothing to put there
            steps = [configs[name] for name in (route.head, route.body, route.tail)]
            _write(folder / "config.pbtxt", ensemble_config(route, steps))
    router = repository / ROUTER
    (router / "1").mkdir(parents=True, exist_ok=True)
    if (router / "1").resolve() != ROUTER_SOURCE.resolve().parent:
        _replace(ROUTER_SOURCE, router / "1" / "model.py")
    _replace(TILING_SOURCE, router / "1" / "tiling.py")
    with atomic_file(router / "config.pbtxt") as temporary:
        _write(temporary, router_config(manifest, options))
    return [ROUTER, *sorted(models)]


def _add_plans(plans: Sequence[Plan], version: Path) -> None:
    """Plans with their descriptions, which `export/serving/preflight_gpu.py` and the engine runner read."""
    for plan in plans:
        target = version / plan_file(plan, plans)
        shutil.copyfile(plan.path, target)
        shutil.copyfile(describe_path(plan.path), describe_path(target))


def _add_engine_runner(version: Path) -> None:
    shutil.copyfile(ROOM / "runner_tensorrt.py", version / "model.py")
    _keep_out_bytecode(version)
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
    except (OSError, text_format.ParseError):
        return False
    return config.parameters["generated_by"].string_value == GENERATOR


def _replace(source: Path, target: Path) -> None:
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)
