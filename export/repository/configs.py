"""Configurations of the served models, as protobufs, so that none can be malformed.

Ensembles and the router have the same names and tensors in every runtime; what differs is how parts are run: `openvino`
in Triton's Python backend on the CPU, `tensorrt` in Triton's TensorRT backend, `tensorrt-python` and `tensorrt-rtx` in
its Python backend with a plan of TensorRT or of TensorRT for RTX. On GPUs a part is a model. On CPUs a model is a
process with a runtime of its own, and tensors are copied from process to process: a body is one model there with the
heads and tails of its tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from ipt_triton.export.engines.metadata import plan_path
from ipt_triton.manifest import Manifest, Part, Port, Route
from ipt_triton.seal import SEAL
from ipt_triton.service import (
    MAX_INPUT_PIXELS,
    MAX_OUTPUT_PIXELS,
    PIXELS_PER_PATCH,
    ROUTER,
    STREAM,
    ServiceInfo,
    ensemble_name,
    graph_batches,
    requests_in_flight,
)
from ipt_triton.tasks import LONGEST_CHAIN
from ipt_triton.tiling import KEEP, STRIDE

GENERATOR = "ipt-export"

PLAN_STEM = "model"
"""Plans in a version folder are `model_<compute capability>.plan`, beside the graph `model.onnx`."""

CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
"""Compute capabilities that TensorRT 10 and 11 run on; Triton picks the plan of the GPU at hand."""

_TYPES = {"float32": pb.TYPE_FP32, "float16": pb.TYPE_FP16}


def _option(default: int, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ServingOptions:
    """How the repository serves; all of it can be changed by exporting again. `ipt-export` has a flag for each field.

    Two bodies keep the machine busy while one hands over its batch, and the fewer threads an instance has, the less
    they wait for each other.
    """

    threads: int = _option(0, "OpenVINO threads of each instance of a part; 0: half of the cores")
    body_instances: int = _option(2, "bodies that run side by side, on each GPU if there are some")
    router_instances: int = _option(10, "whole-image requests under way at once; the last two are for short ones")
    stream_instances: int = _option(4, "whole-image requests under way at once that tell how far they are; 0: none")
    max_waiting: int = _option(64, "requests that wait for a router; more are refused as unavailable")
    max_wait_ms: int = _option(2000, "milliseconds that a request waits for a router at most; 0: as long as it takes")
    queue_delay_us: int = _option(500, "microseconds that the body waits for a fuller batch")
    max_input_pixels: int = _option(MAX_INPUT_PIXELS, "of the largest image that a request may hold")
    max_output_pixels: int = _option(MAX_OUTPUT_PIXELS, "of the largest image that a request may ask for")
    max_patches: int = _option(
        0, "that a request may cut its image into; 0: what the official rule (stride 12) takes of the largest image"
    )


@dataclass(frozen=True)
class Model:
    """A served model; a request goes one of its ways.

    Attributes:
        name: of the model.
        ways: parts one after the other, by the ending that the names of the first one's inputs and of the last one's
            outputs get in this model.
        has_body: whether a body is among them.
    """

    name: str
    ways: Mapping[str, tuple[Part, ...]]
    has_body: bool

    @property
    def parts(self) -> list[Part]:
        """Each once."""
        return list({part.name: part for way in self.ways.values() for part in way}.values())


def models_of(manifest: Manifest) -> list[Model]:
    """The models that run a manifest's parts."""
    bodies = dict.fromkeys(route.body for route in manifest.routes)
    if manifest.runtime != "openvino":
        return [Model(part.name, {"": (part,)}, part.name in bodies) for part in manifest.parts]
    ways: dict[str, dict[str, tuple[Part, ...]]] = {body: {} for body in bodies}
    for route in manifest.routes:
        ways[route.body][f"_{route.task.name}"] = parts_of(route, manifest)
    return [Model(body, of_body, has_body=True) for body, of_body in ways.items()]


def parts_of(route: Route, manifest: Manifest) -> tuple[Part, ...]:
    """Head, body and tail of a task."""
    return tuple(manifest.part(name) for name in (route.head, route.body, route.tail))


def model_config(model: Model, manifest: Manifest, options: ServingOptions) -> pb.ModelConfig:
    """Configuration of a model of parts, with dynamic batching."""
    count = options.body_instances if model.has_body else 1
    kind = pb.ModelInstanceGroup.KIND_CPU if manifest.runtime == "openvino" else pb.ModelInstanceGroup.KIND_GPU
    config = pb.ModelConfig(
        name=model.name,
        max_batch_size=manifest.max_batch,
        instance_group=[pb.ModelInstanceGroup(count=count, kind=kind)],
        dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=options.queue_delay_us),
    )
    first = any(port.name == "IMAGE" for way in model.ways.values() for port in way[0].inputs)
    sealed = is_sealed(manifest.runtime)
    for ending, way in model.ways.items():
        config.input.extend(pb.ModelInput(**_tensor(port, ending), optional=bool(ending)) for port in way[0].inputs)
        config.output.extend(pb.ModelOutput(**_tensor(port, ending)) for port in way[-1].outputs)
        for batch in (1, manifest.max_batch):
            config.model_warmup.append(_warm_up(way[0].inputs, ending, batch, sealed and not first))
    if sealed:
        config.output.add(name=SEAL, data_type=pb.TYPE_INT64, dims=[2])
        if not first:
            config.input.add(name=SEAL, data_type=pb.TYPE_INT64, dims=[2])
    if manifest.runtime == "tensorrt":
        config.platform = "tensorrt_plan"
        for capability in CAPABILITIES:
            config.cc_model_filenames[capability] = plan_path(Path(PLAN_STEM), capability).name
        # Left to itself, a backend with dynamic batching captures graphs for batches of 1 and the largest alone.
        config.optimization.cuda.graphs = True
        for batch in graph_batches(manifest.max_batch):
            config.optimization.cuda.graph_spec.add(batch_size=batch)
    else:
        config.backend = "python"
    _set_parameters(config, precision=manifest.precision)
    if manifest.runtime == "openvino":
        ways = {ending: [part.name for part in way] for ending, way in model.ways.items()}
        _set_parameters(config, threads=options.threads, ways=json.dumps(ways))
    return config


def is_sealed(runtime: str) -> bool:
    """Whether patches carry seals: where parts run in Triton's Python backend, which may mix them up."""
    return runtime != "tensorrt"


def ensemble_config(route: Route, models: Sequence[Model], manifest: Manifest) -> pb.ModelConfig:
    """Configuration of `ipt_<task>`: IMAGE [3, 48, 48] -> RESTORED [3, 48·scale, 48·scale], around 0..255."""
    config = pb.ModelConfig(
        name=ensemble_name(route.task.name),
        platform="ensemble",
        max_batch_size=manifest.max_batch,
        input=[pb.ModelInput(**_tensor(port)) for port in manifest.part(route.head).inputs],
        output=[pb.ModelOutput(**_tensor(port)) for port in manifest.part(route.tail).outputs],
    )
    sealed = is_sealed(manifest.runtime)
    if sealed:
        config.output.add(name=SEAL, data_type=pb.TYPE_INT64, dims=[2])
    # Tensors keep their names from model to model, but for seals: each model writes its own.
    left, seal = [part.name for part in parts_of(route, manifest)], ""
    while left:
        model, ending, way = next(
            (model, ending, way)
            for model in models
            for ending, way in model.ways.items()
            if [part.name for part in way] == left[: len(way)]
        )
        left = left[len(way) :]
        read = {port.name + ending: port.name for port in way[0].inputs}
        write = {port.name + ending: port.name for port in way[-1].outputs}
        if sealed:
            if seal:
                read[SEAL] = seal
            seal = write[SEAL] = f"{way[-1].outputs[0].name}_{SEAL}" if left else SEAL
        config.ensemble_scheduling.step.append(
            pb.ModelEnsembling.Step(model_name=model.name, model_version=-1, input_map=read, output_map=write)
        )
    _set_parameters(config)
    return config


def router_configs(manifest: Manifest, options: ServingOptions) -> dict[str, pb.ModelConfig]:
    """Configurations of the router and, unless it has no instances, of the one that tells how far it is, by name."""
    slots = options.router_instances + options.stream_instances
    configs = {ROUTER: _router_config(manifest, options, ROUTER, options.router_instances)}
    if options.stream_instances:
        stream = _router_config(manifest, options, STREAM, options.stream_instances)
        stream.model_transaction_policy.decoupled = True
        stream.output.add(name="PROGRESS", data_type=pb.TYPE_INT64, dims=[2])
        configs[STREAM] = stream
    for config, first in zip(configs.values(), (0, options.router_instances), strict=False):
        _set_parameters(config, slots=slots, first_slot=first)
    return configs


def _router_config(manifest: Manifest, options: ServingOptions, name: str, instances: int) -> pb.ModelConfig:
    """Its parameters tell clients the tasks, the tiling rule and the limits."""
    image = [-1, -1, 3]
    config = pb.ModelConfig(
        name=name,
        backend="python",
        max_batch_size=0,
        input=[
            pb.ModelInput(name=name, data_type=kind, dims=dims, optional=True)
            for name, kind, dims in (
                ("IMAGE", pb.TYPE_UINT8, image),
                ("IMAGE16", pb.TYPE_UINT16, image),
                ("TASK_ID", pb.TYPE_INT32, [-1]),
                ("TASK", pb.TYPE_STRING, [-1]),
                ("STRIDE", pb.TYPE_INT32, [1]),
                ("KEEP", pb.TYPE_INT32, [1]),
            )
        ],
        output=[
            pb.ModelOutput(name="RESTORED", data_type=pb.TYPE_UINT8, dims=image),
            pb.ModelOutput(name="RESTORED16", data_type=pb.TYPE_UINT16, dims=image),
            pb.ModelOutput(name="RESTORED32", data_type=pb.TYPE_FP32, dims=image),
        ],
        instance_group=[pb.ModelInstanceGroup(count=instances, kind=pb.ModelInstanceGroup.KIND_CPU)],
    )
    # Without batches there is nothing to batch, and the queue in front of the routers has a bound.
    queue = config.dynamic_batching.default_queue_policy
    queue.max_queue_size, queue.default_timeout_microseconds = options.max_waiting, 1000 * options.max_wait_ms
    info = ServiceInfo(
        tasks=tuple(route.task for route in manifest.routes),
        patch_size=manifest.patch_size,
        stride=STRIDE,
        keep=KEEP,
        max_input_pixels=options.max_input_pixels,
        max_output_pixels=options.max_output_pixels,
        max_patches=options.max_patches or max(1, options.max_input_pixels // PIXELS_PER_PATCH),
        checkpoint_sha256=",".join(dict.fromkeys(route.checkpoint_sha256 for route in manifest.routes)),
        runtime=manifest.runtime,
        precision=manifest.precision,
    )
    _set_parameters(
        config,
        **info.to_parameters(),
        body_instances=options.body_instances,
        chunk=manifest.max_batch,
        requests_in_flight=requests_in_flight(options.body_instances),
        sealed=int(is_sealed(manifest.runtime)),
        longest_chain=LONGEST_CHAIN,
    )
    return config


def _tensor(port: Port, ending: str = "") -> dict[str, Any]:
    return {"name": port.name + ending, "data_type": _TYPES[port.dtype], "dims": port.shape}


def _warm_up(inputs: Sequence[Port], ending: str, batch: int, sealed: bool) -> pb.ModelWarmup:
    """Random values, and seals of zeros; Triton sends `batch` single requests, which the batcher may join."""
    warm_up = pb.ModelWarmup(name=f"batch_{batch}{ending}", batch_size=batch)
    for port in inputs:
        entry = pb.ModelWarmup.Input(data_type=_TYPES[port.dtype], dims=port.shape, random_data=True)
        warm_up.inputs[port.name + ending].CopyFrom(entry)
    if sealed:
        warm_up.inputs[SEAL].CopyFrom(pb.ModelWarmup.Input(data_type=pb.TYPE_INT64, dims=[2], zero_data=True))
    return warm_up


def _set_parameters(config: pb.ModelConfig, **values: object) -> None:
    for key, value in {"generated_by": GENERATOR, **values}.items():
        config.parameters[key].string_value = str(value)
