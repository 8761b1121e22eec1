"""The Triton model repository: parts, ensembles and the router's configuration, written from a parts folder.

Per task one ensemble `ipt_<task>` over `head_<task>` → `body` → `tail_<task>`; the router `restore` in front of them is
handwritten (`triton_models/restore/1/model.py`) and only gets its `config.pbtxt` and the tiling module. Configurations
are built as protobufs, so they cannot be malformed.

Only generated files are written, a model folder at a time (temporary, then renamed). Folders of an earlier export that
this one does not need are removed: a generated configuration carries the parameter `generated_by`, and a folder without
it is never touched. The router's configuration goes first and comes last, so a repository that was left half written is
recognised by its absence.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.parts import Manifest, Part, Port, Route
from train.atomic import atomic_directory, atomic_file
from train.tiling import KEEP, STRIDE

ROOM = Path(__file__).parent
ROUTER = "restore"
ROUTER_SOURCE = ROOM.parent / "triton_models" / ROUTER / "1" / "model.py"
TILING_SOURCE = ROOM.parent / "train" / "tiling.py"
GENERATOR = "ipt-export"


class RepositoryError(ValueError):
    """A repository that cannot be written as asked."""


@dataclass(frozen=True)
class ServingOptions:
    """How the repository serves; all of it can be changed by exporting again.

    Attributes:
        threads: OpenVINO threads of each instance of a part, 0 for half of the cores.
        body_instances: bodies that run side by side. Two keep the cores busy while one hands over its batch, and the
            fewer threads an instance has, the less they wait for each other.
        router_instances: whole-image requests under way at once.
        queue_delay_us: how long the body waits for more patches, in microseconds.
        max_input_pixels, max_output_pixels: largest image of one request.
    """

    threads: int = 0
    body_instances: int = 2
    router_instances: int = 8
    queue_delay_us: int = 500
    max_input_pixels: int = 64_000_000
    max_output_pixels: int = 256_000_000


def write_repository(parts_folder: Path, manifest: Manifest, repository: Path, options: ServingOptions) -> list[str]:
    """Write every generated file of the repository; returns the names of its models.

    Raises:
        RepositoryError: a folder that a model needs was not generated, by name.
    """
    repository.mkdir(parents=True, exist_ok=True)
    models = {part.name for part in manifest.parts} | {ensemble_name(route) for route in manifest.routes}
    for name in sorted(models):
        if (repository / name).exists() and not _is_generated(repository / name):
            raise RepositoryError(
                f"{repository / name} was not written by {GENERATOR}; move it away, or choose another --repository"
            )
    (repository / ROUTER / "config.pbtxt").unlink(missing_ok=True)
    for folder in repository.iterdir():
        if folder.is_dir() and folder.name not in models and folder.name != ROUTER and _is_generated(folder):
            shutil.rmtree(folder)
    for part in manifest.parts:
        with atomic_directory(repository / part.name) as folder:
            (folder / "1").mkdir()
            shutil.copyfile(ROOM / "runner_openvino.py", folder / "1" / "model.py")
            _link_or_copy(parts_folder / f"{part.name}.onnx", folder / "1" / "model.onnx")
            _write(folder / "config.pbtxt", part_config(part, manifest, options))
    for route in manifest.routes:
        with atomic_directory(repository / ensemble_name(route)) as folder:
            (folder / "1").mkdir()  # Triton wants a version folder, and an ensemble has nothing to put there
            _write(folder / "config.pbtxt", ensemble_config(route, manifest))
    router = repository / ROUTER
    (router / "1").mkdir(parents=True, exist_ok=True)
    if (router / "1").resolve() != ROUTER_SOURCE.parent.resolve():
        _replace(ROUTER_SOURCE, router / "1" / "model.py")
    _replace(TILING_SOURCE, router / "1" / "tiling.py")
    with atomic_file(router / "config.pbtxt") as temporary:
        _write(temporary, router_config(manifest, options))
    return [ROUTER, *sorted(models)]


def ensemble_name(route: Route) -> str:
    return f"ipt_{route.task.name}"


def part_config(part: Part, manifest: Manifest, options: ServingOptions) -> pb.ModelConfig:
    """Configuration of a head, body or tail in Triton's Python backend, with dynamic batching."""
    instances = options.body_instances if part.name in {route.body for route in manifest.routes} else 1
    config = pb.ModelConfig(
        name=part.name,
        backend="python",
        max_batch_size=manifest.max_batch,
        input=[_input(p) for p in part.inputs],
        output=[_output(p) for p in part.outputs],
        instance_group=[pb.ModelInstanceGroup(count=instances, kind=pb.ModelInstanceGroup.KIND_CPU)],
        dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=options.queue_delay_us),
        model_warmup=[_warm_up(part, batch) for batch in (1, manifest.max_batch)],
    )
    _set_parameters(config, precision=manifest.precision, threads=options.threads)
    return config


def ensemble_config(route: Route, manifest: Manifest) -> pb.ModelConfig:
    """Configuration of `ipt_<task>`: IMAGE [3, 48, 48] -> RESTORED [3, 48·scale, 48·scale], float32 around 0..255."""
    head, tail = manifest.part(route.head), manifest.part(route.tail)
    config = pb.ModelConfig(
        name=ensemble_name(route),
        platform="ensemble",
        max_batch_size=manifest.max_batch,
        input=[_input(p) for p in head.inputs],
        output=[_output(p) for p in tail.outputs],
    )
    for name in (route.head, route.body, route.tail):
        part = manifest.part(name)
        config.ensemble_scheduling.step.append(
            pb.ModelEnsembling.Step(
                model_name=name,
                model_version=-1,
                input_map={p.name: p.name for p in part.inputs},
                output_map={p.name: p.name for p in part.outputs},
            )
        )
    _set_parameters(config)
    return config


def router_config(manifest: Manifest, options: ServingOptions) -> pb.ModelConfig:
    """Configuration of the router; its parameters tell clients the tasks, the tiling rule and the limits."""
    image = [-1, -1, 3]
    config = pb.ModelConfig(
        name=ROUTER,
        backend="python",
        max_batch_size=0,
        input=[
            pb.ModelInput(name=name, data_type=kind, dims=dims, optional=True)
            for name, kind, dims in (
                ("IMAGE", pb.TYPE_UINT8, image),
                ("IMAGE16", pb.TYPE_UINT16, image),
                ("TASK_ID", pb.TYPE_INT32, [1]),
                ("TASK", pb.TYPE_STRING, [1]),
                ("STRIDE", pb.TYPE_INT32, [1]),
                ("KEEP", pb.TYPE_INT32, [1]),
            )
        ],
        output=[
            pb.ModelOutput(name="RESTORED", data_type=pb.TYPE_UINT8, dims=image),
            pb.ModelOutput(name="RESTORED16", data_type=pb.TYPE_UINT16, dims=image),
        ],
        instance_group=[pb.ModelInstanceGroup(count=options.router_instances, kind=pb.ModelInstanceGroup.KIND_CPU)],
    )
    _set_parameters(
        config,
        tasks=json.dumps([route.task.to_dict() for route in manifest.routes]),
        patch_size=manifest.patch_size,
        stride=STRIDE,
        keep=KEEP,
        max_input_pixels=options.max_input_pixels,
        max_output_pixels=options.max_output_pixels,
        checkpoint_sha256=",".join(dict.fromkeys(route.checkpoint_sha256 for route in manifest.routes)),
        runtime="openvino",
        precision=manifest.precision,
    )
    return config


def _input(port: Port) -> pb.ModelInput:
    return pb.ModelInput(name=port.name, data_type=pb.TYPE_FP32, dims=port.shape)


def _output(port: Port) -> pb.ModelOutput:
    return pb.ModelOutput(name=port.name, data_type=pb.TYPE_FP32, dims=port.shape)


def _warm_up(part: Part, batch: int) -> pb.ModelWarmup:
    """Random values; Triton sends `batch` single requests, which the batcher may join."""
    warm_up = pb.ModelWarmup(name=f"batch_{batch}", batch_size=batch)
    for port in part.inputs:
        entry = pb.ModelWarmup.Input(data_type=pb.TYPE_FP32, dims=port.shape, random_data=True)
        warm_up.inputs[port.name].CopyFrom(entry)
    return warm_up


def _set_parameters(config: pb.ModelConfig, **values: object) -> None:
    for key, value in {"generated_by": GENERATOR, **values}.items():
        config.parameters[key].string_value = str(value)


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


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
