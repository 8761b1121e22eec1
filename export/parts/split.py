"""Splitting: a checkpoint becomes ONNX heads, bodies and tails with a manifest, each checked against PyTorch.

The parts folder holds `head_<task>.onnx`, `body.onnx` (or `body_<8 hex of its hash>.onnx` when there are several) and
`tail_<task>.onnx`, and `manifest.json`: tasks, tensors, hashes, operator set, and the parity of each part. Tasks whose
checkpoints hold the same body, bit for bit, share it.

For OpenVINO the graphs are FP32 and the precision is told to it at run time. For TensorRT the precision is in the graph
(`typed`), and `samples.npz` holds what PyTorch computed on real tiles, as `<task>/<TENSOR>`, float32: engines
are compared with it on machines without PyTorch. The embedding, the same for every tile, has one row there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from ipt_triton.export.errors import ExportError
from ipt_triton.export.parts.calibration import calibration_samples, held_out
from ipt_triton.export.parts.checks import check_for_tensorrt
from ipt_triton.export.parts.flops import count_flops
from ipt_triton.export.parts.graph import count_weights, layer_precision, list_layers
from ipt_triton.export.parts.int8 import ParityTiles, quantize_body
from ipt_triton.export.parts.parity import OpByOp, check_part, check_task, real_tiles
from ipt_triton.export.parts.tracing import TRACER
from ipt_triton.export.parts.typed import fp16_ports, type_part
from ipt_triton.files import atomic_directory
from ipt_triton.manifest import (
    LARGEST_BATCH,
    PRECISIONS,
    RESIDUALS,
    SAMPLES,
    TENSORS,
    Int8,
    Manifest,
    Part,
    Port,
    Route,
    tasks_of_parts,
)
from ipt_triton.parity import compare
from ipt_triton.reading import sha256_of
from ipt_triton.service import MAX_BATCH, gpu_batch
from ipt_triton.tasks import Task, task_table
from ipt_triton.train.model.checkpoint import Checkpoint, content_hash
from ipt_triton.train.model.ipt import IPT, POSITIONS

logger = logging.getLogger(__name__)


def plan_routes(checkpoints: Sequence[Checkpoint]) -> tuple[list[Route], dict[str, tuple[str, nn.Module]]]:
    """Who is served by which part: routes in task order, and the modules by part name with their hashes.

    Raises:
        ExportError: checkpoints of different patch sizes, of relative positions, or a task given twice.
    """
    if any(c.model.config.position == "relative" for c in checkpoints):
        able = ", ".join(name for name in POSITIONS if name != "relative")
        raise ExportError(f"a model with position 'relative' is for comparison and cannot be exported; {able} can")
    patch_sizes = {c.model.config.patch_size for c in checkpoints}
    if len(patch_sizes) != 1:
        raise ExportError(f"checkpoints of patch sizes {sorted(patch_sizes)} cannot be served together")
    body_hashes = [content_hash(c.model.body.state_dict()) for c in checkpoints]
    single = len(set(body_hashes)) == 1
    routes: list[Route] = []
    modules: dict[str, tuple[str, nn.Module]] = {}
    for checkpoint, body_hash in zip(checkpoints, body_hashes, strict=True):
        body = "body" if single else f"body_{body_hash[:8]}"
        modules.setdefault(body, (body_hash, checkpoint.model.body))
        for task in checkpoint.model.config.tasks:
            twins = [r.task for r in routes if task.id == r.task.id or task.name == r.task.name]
            if twins:
                raise ExportError(
                    f"task {task.id} {task.name} meets task {twins[0].id} {twins[0].name} of another checkpoint; "
                    "export only one of the two"
                )
            head, tail = f"head_{task.name}", f"tail_{task.name}"
            for name, module in ((head, checkpoint.model.heads[task.name]), (tail, checkpoint.model.tails[task.name])):
                modules[name] = (content_hash(module.state_dict()), module)
            routes.append(Route(task, head, body, tail, checkpoint.sha256))
    task_table(r.task for r in routes)
    return sorted(routes, key=lambda r: r.task.id), modules


def check_combination(
    runtime: str, precision: str, residual: str = "float32", fp32_io: bool = False, fp16_restored: bool = False
) -> None:
    """Raise ExportError, naming what there is, for a runtime that does not compute so."""
    if runtime not in PRECISIONS:
        raise ExportError(f"runtime {runtime!r} is not one of {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[runtime]:
        raise ExportError(
            f"runtime {runtime} has no precision {precision!r}; it has {', '.join(PRECISIONS[runtime])}"
            + ("; fp16 is for the tensorrt runtimes" if precision == "fp16" else "")
        )
    if residual not in RESIDUALS:
        raise ExportError(f"residual {residual!r} is not one of {', '.join(RESIDUALS)}")
    if residual == "float16" and precision != "fp16":
        raise ExportError(f"a residual stream in float16 needs precision fp16, not {precision}")
    if fp32_io and (runtime == "openvino" or precision == "fp32"):
        raise ExportError(f"FP32 inputs and outputs are what {runtime} in {precision} has anyway; leave --fp32-io out")
    if fp16_restored and (runtime == "openvino" or precision == "fp32"):
        raise ExportError(f"{runtime} in {precision} gives FP32 alone; leave --fp16-restored out")


def check_batch(max_batch: int | None) -> None:
    """Raise ExportError for a largest batch that no graph takes; None is what fits the runtime."""
    if max_batch is not None and not 1 <= max_batch <= LARGEST_BATCH:
        raise ExportError(f"--max-batch {max_batch} is not within 1 to {LARGEST_BATCH}")


def export_parts(
    checkpoints: Sequence[Checkpoint],
    folder: Path,
    precision: str = "fp32",
    runtime: str = "openvino",
    residual: str = "float32",
    fp32_io: bool = False,
    photos: Sequence[np.ndarray] = (),
    max_batch: int | None = None,
    fp16_restored: bool = False,
) -> Manifest:
    """Write the parts folder atomically.

    Args:
        precision: how the parts will be run, one of `PRECISIONS` for the runtime; the parity gate uses it.
        residual: type of the residual stream of FP16 parts, one of `RESIDUALS`.
        fp32_io: keep the tensors between typed parts FP32; otherwise they are FP16 unless their values do not fit.
        photos: clean photographs, uint8 RGB, for INT8 alone, which is calibrated and measured on them.
        max_batch: most patches of one request to the network; None for what fits the runtime (`service`).
        fp16_restored: RESTORED in FP16, which at 128 to 255 counts in eighths of a grey level.

    Raises:
        ExportError, ParityError: nothing is written then.
    """
    check_combination(runtime, precision, residual, fp32_io, fp16_restored)
    check_batch(max_batch)
    routes, modules = plan_routes(checkpoints)
    models = {c.sha256: c.model for c in checkpoints}
    samples = {r.task.name: _samples(models[r.checkpoint_sha256], r.task) for r in routes}
    typed = runtime != "openvino" and precision != "fp32"
    low_ports = fp16_ports(samples.values()) if typed and not fp32_io else frozenset()
    if fp16_restored:
        low_ports |= {"RESTORED"}
    with atomic_directory(folder) as temporary:
        parts: dict[str, Part] = {}
        networks: dict[str, OpByOp] = {}
        for name, (kind, tasks) in tasks_of_parts(routes).items():
            inputs, expected = (_deal_out(samples, tasks, names) for names in TENSORS[kind])
            sha256, module = modules[name]
            path = temporary / f"{name}.onnx"
            graph = TRACER.graph(module, inputs, list(expected), name)
            flops = count_flops(graph)
            keep: tuple[str, ...] = ()
            int8: Int8 | None = None
            if precision == "int8" and kind == "body":
                by_task = [(models[r.checkpoint_sha256], r.task) for r in routes if r.body == name]
                tiles = [tile for model, task in by_task for tile in calibration_samples(model, [task], photos)]
                unseen = [held_out(model, task, photos) for model, task in by_task]
                quantized = quantize_body(graph, tiles, unseen, ParityTiles(inputs, expected))
                graph, keep = quantized.model, quantized.kept
                int8 = Int8(quantized.share, quantized.loss, quantized.confirmed_with)
            onnx.save(graph, path)
            parity = check_part(path, inputs, expected, precision if runtime == "openvino" else "fp32")
            logger.info("%s: %s", name, parity)
            largest: float | None = None
            if typed:
                part = type_part(graph, inputs, precision, "low" if residual == "float16" else "fp32", low_ports)
                graph, keep, largest = part.graph, part.keep, part.largest
                networks[name] = OpByOp(graph)
                parity = compare(name, networks[name](inputs), expected, precision)
                logger.info("%s: %s, largest value %.4g, layers kept FP32: %d", name, parity, largest, len(keep))
                onnx.save(graph, path)
            if runtime != "openvino":
                check_for_tensorrt(graph, precision)
            parts[name] = Part(
                name,
                _ports(graph.graph.input, inputs),
                _ports(graph.graph.output, expected),
                sha256,
                parity,
                flops,
                count_weights(graph),
                layer_precision(graph, precision),
                keep,
                residual,
                largest,
                int8,
                list_layers(graph) if runtime != "openvino" else (),
                sha256_of(path),
            )
        for i, route in enumerate(routes if typed else ()):
            in_a_row = [networks[name] for name in (route.head, route.body, route.tail)]
            image = check_task(models[route.checkpoint_sha256], route.task, in_a_row, precision)
            logger.info("image of task %s: %s", route.task.name, image)
            routes[i] = replace(route, image=image)
        if runtime != "openvino":
            _save_samples(temporary / SAMPLES, samples)
        patch_size = checkpoints[0].model.config.patch_size
        if max_batch is None:
            max_batch = MAX_BATCH if runtime == "openvino" else gpu_batch(_patch_bytes(parts, routes))
        manifest = Manifest(patch_size, runtime, precision, tuple(parts.values()), tuple(routes), max_batch=max_batch)
        manifest.save(temporary)
    return manifest


def _patch_bytes(parts: Mapping[str, Part], routes: Sequence[Route]) -> int:
    """Bytes of one patch's tensors on the largest way through the network."""
    ways = ([parts[route.head], parts[route.body], parts[route.tail]] for route in routes)
    return max(sum({p.name: p.nbytes for part in way for p in (*part.inputs, *part.outputs)}.values()) for way in ways)


def _deal_out(
    samples: Mapping[str, Mapping[str, np.ndarray]], tasks: Sequence[str], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Tensors of a part that serves several tasks: the tiles in turn to its tasks, and to each at least one."""
    rows = {task: slice(i % len(samples[task][names[0]]), None, len(tasks)) for i, task in enumerate(tasks)}
    return {name: np.concatenate([samples[task][name][rows[task]] for task in tasks]) for name in names}


def _ports(values: Sequence[onnx.ValueInfoProto], tensors: Mapping[str, np.ndarray]) -> tuple[Port, ...]:
    types = {v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in values}
    return tuple(Port(name, tensors[name].shape[1:], types[name]) for name in types)


def _save_samples(path: Path, samples: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    arrays = {
        f"{task}/{name}": tensor[:1] if name == "TASK_EMBEDDING" else tensor
        for task, tensors in samples.items()
        for name, tensor in tensors.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy 1.26 has no types for it


@torch.inference_mode()
def _samples(model: IPT, task: Task) -> dict[str, np.ndarray]:
    """Every tensor of a task's path on real tiles, as PyTorch FP32 computes it."""
    tensors = {"IMAGE": torch.from_numpy(real_tiles(model.config.patch_size))}
    tensors["FEATURES"], tensors["TASK_EMBEDDING"] = model.heads[task.name](tensors["IMAGE"])
    tensors["BODY_FEATURES"] = model.body(tensors["FEATURES"], tensors["TASK_EMBEDDING"])
    tensors["RESTORED"] = model.tails[task.name](tensors["BODY_FEATURES"])
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
