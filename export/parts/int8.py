"""INT8: post-training quantisation of a body by NNCF, held to what it may cost on every CPU.

Weights and activations of the linear layers become 8 bits (QuantizeLinear and DequantizeLinear in the ONNX graph);
norms, sums, Softmax and the products of two activations stay as they are. Activations get the range of the calibration
tiles from end to end: NNCF's default, the mean of the tiles' ranges, clips the rare large values that flat areas of a
picture hang on.

CPUs without VNNI add two products of 8 bits in 16 bits and cut what does not fit. So weights take half of their range,
±64: twice 255 times 64 fits. A product of two activations has no such operand, so it is left out of INT8. Beside this
the result must be shown to be the same on every CPU: layers are chosen by exact arithmetic, in which each operator of
the graph is computed in FP32 on its own, and the body that is chosen is confirmed on the kernels of this CPU.

The loss is the PSNR of each task on tiles that calibration has not seen, and the difference from PyTorch on the parity
gate's tiles, where a single value that is clipped shows. Where it is too large, the layers that cost most go back to
FP32, exactly as they were, and are named.

NNCF's own search, `quantize_with_accuracy_control`, lost by its time: for `denoise_30` of `ipt-tiny` it leaves out the
same layer in 72 s of CPU time instead of 29 s, and only under a tenth of the bound it keeps 1 % more in INT8 (81 s
instead of 39 s).

    quantized = quantize_body(onnx.load("body.onnx"), samples, unseen, parity_tiles)     # calibration.py
    onnx.save(quantized.model, "body.onnx")
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov

from ipt_triton.cpu import cpu_flags, int8_instructions
from ipt_triton.export.errors import ExportError
from ipt_triton.export.parts.calibration import HeldOut
from ipt_triton.export.parts.flops import flops_of_nodes
from ipt_triton.export.parts.layer_names import MOVING, groups_of, layer_names, named, source_of
from ipt_triton.export.parts.one_core import core
from ipt_triton.export.parts.parity import inference_type
from ipt_triton.manifest import Parity
from ipt_triton.parity import TOLERANCES, measure
from ipt_triton.service import MAX_BATCH

logger = logging.getLogger(__name__)

MAX_LOSS = 0.1
"""PSNR in dB that INT8 may cost any task."""

MIN_SHARE = 0.5
"""Share of the multiplications that must be INT8, or it is not worth its loss."""

EXACT_SHARE = 0.8
"""Share of what INT8 may cost that exact arithmetic may use up; the rest is for what a CPU rounds, BF16 above all."""

ROUNDING = 0.5
"""Distance of a CPU's kernels from exact arithmetic, in INT8's own RMS error. Rounding alone makes 0.1 to 0.3; sums
that are cut made 2.3 (`ipt-tiny`, AVX2)."""

_Body = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Inputs of n tiles to BODY_FEATURES."""


class QuantizationError(ExportError):
    """A body that INT8 costs too much, or no NNCF to quantise it with."""


@dataclass(frozen=True)
class Quantized:
    """A body in INT8.

    Attributes:
        kept: layers that are not INT8, as `export.parts.layer_names` calls them.
        share: of the multiplications, how many are INT8, 0 to 1.
        loss: PSNR in dB that INT8 costs each task on held-out tiles, in exact arithmetic.
        confirmed_with: instructions of the CPU whose kernels stay within the bounds too.
    """

    model: onnx.ModelProto
    kept: tuple[str, ...]
    share: float
    loss: dict[str, float]
    confirmed_with: str


@dataclass(frozen=True)
class ParityTiles:
    """Inputs of the body on the parity gate's tiles, and what PyTorch makes of them."""

    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Cost:
    """Loss in dB by task on held-out tiles, and parity on the gate's."""

    loss: dict[str, float]
    parity: Parity

    def share(self, allowed: float) -> float:
        """Part of what is allowed that it uses up; above 1 it costs a task too much or is refused by the gate."""
        return max(max(self.loss.values()) / allowed, TOLERANCES["int8"].used_by(self.parity))

    def __str__(self) -> str:
        return ", ".join(f"{task} {value:+.3f} dB" for task, value in self.loss.items()) + f", {self.parity}"


def quantize_body(
    model: onnx.ModelProto,
    samples: Sequence[Mapping[str, np.ndarray]],
    unseen: Sequence[HeldOut],
    parity_tiles: ParityTiles,
    allowed: float = MAX_LOSS,
) -> Quantized:
    """Quantise a body so that no task loses more than `allowed` dB and the parity gate takes it.

    Args:
        model: FP32 body, as `export.parts.split` writes it.
        samples: what to calibrate on, one tile each, of all its tasks.
        unseen: held-out tiles, one set for each of its tasks.

    Raises:
        QuantizationError: NNCF is not installed, or less than `MIN_SHARE` of the body can be INT8 within the bounds,
            or the kernels of this CPU do not keep within them.
    """
    name = model.graph.name
    everything = post_training(model, samples)
    layers = layer_names(model)
    groups = groups_of(layers)
    flops = dict(zip((node.name for node in model.graph.node), flops_of_nodes(model), strict=True))
    full = _scores(exact(model), unseen)

    def cost(body: _Body) -> _Cost:
        reached = _scores(body, unseen)
        parity = measure(name, {"BODY_FEATURES": body(parity_tiles.inputs)}, parity_tiles.expected, "int8")
        return _Cost({task: full[task] - reached[task] for task in full}, parity)

    @cache
    def cost_without(kept: frozenset[str]) -> _Cost:
        found = cost(exact(with_fp32(everything, model, kept)))
        logger.info("INT8 without %s: %s", ", ".join(named(kept, groups, layers)) or "exceptions", found)
        return found

    eligible = quantized_layers(everything)
    chosen = choose_kept(
        {group: nodes & eligible for group, nodes in groups.items() if nodes & eligible},
        flops,
        lambda kept: cost_without(kept).share(allowed) / EXACT_SHARE,
    )
    if chosen is None:
        raise QuantizationError(
            f"INT8 uses up more than {EXACT_SHARE:.0%} of the {allowed} dB or of the parity gate's tolerance that body "
            f"{name} may cost, whatever is left out ({cost_without(eligible)}); use --precision bf16 or fp32"
        )
    result = with_fp32(everything, model, chosen)
    inside = quantized_layers(result)
    share = sum(flops[node] for node in inside) / sum(flops.values())
    kept = named(frozenset(layers) - inside, groups, layers)
    if share < MIN_SHARE:
        raise QuantizationError(
            f"only {share:.0%} of body {name} can be INT8 within {allowed} dB and the parity gate "
            f"(not {', '.join(kept)}); use --precision bf16 or fp32"
        )
    instructions = int8_instructions(cpu_flags())
    distance = kernel_distance(result, parity_tiles)
    if distance > ROUNDING:
        logger.warning(
            "body %s: the INT8 kernels of this CPU (%s) are %.1f of INT8's own error away from exact arithmetic, "
            "more than rounding (%.1f), so it may restore otherwise on other CPUs",
            *(name, instructions, distance, ROUNDING),
        )
    here = cost(served(result, inference_type("int8")))
    if here.share(allowed) > 1:
        raise QuantizationError(
            f"body {name} in INT8 costs more than {allowed} dB or fails the parity gate as this CPU ({instructions}) "
            f"computes it ({here}), though not in exact arithmetic ({cost_without(chosen)}); "
            "use --precision bf16 or fp32"
        )
    return Quantized(result, kept, share, cost_without(chosen).loss, instructions)


def kernel_distance(model: onnx.ModelProto, parity_tiles: ParityTiles) -> float:
    """How far the INT8 kernels of this CPU are from exact arithmetic, RMS, in units of INT8's own RMS error."""
    exactly = exact(model)(parity_tiles.inputs)
    apart = served(model, ov.Type.f32)(parity_tiles.inputs) - exactly
    own = exactly - parity_tiles.expected["BODY_FEATURES"]
    return float(np.sqrt(np.square(apart).mean() / max(np.square(own).mean(), 1e-20)))


def post_training(model: onnx.ModelProto, samples: Sequence[Mapping[str, np.ndarray]]) -> onnx.ModelProto:
    """The body with every linear layer in INT8, weights in half of their range; progress goes to stderr.

    Raises:
        QuantizationError: NNCF is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # otherwise it reports its use over the network
    try:
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ModuleNotFoundError as error:
        raise QuantizationError(f"INT8 needs NNCF ({error}): pip install 'ipt-triton[int8]'") from error
    nncf.set_log_level(logging.WARNING)
    weights = {w.name for w in model.graph.initializer}
    of_activations = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] not in weights]
    with contextlib.redirect_stdout(sys.stderr):
        quantised: onnx.ModelProto = nncf.quantize(
            model,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=of_activations),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                # Both rewrite the FP32 graph, so that a layer could not go back; neither gained anything.
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                disable_bias_correction=True,
            ),
        )
    return quantised


def choose_kept(
    groups: Mapping[str, frozenset[str]],
    costs: Mapping[str, float],
    cost_share: Callable[[frozenset[str]], float],
) -> frozenset[str] | None:
    """Nodes to leave out of INT8 so that the `cost_share` without them is at most 1; few and cheap ones, not all.

    The groups are ranked by what each gains alone and left out in that order until the bound holds. Then group by
    group and node by node, the most expensive first, what is not needed goes back to INT8. At most three trials for
    each group, and one for each node left out. None if the bound does not hold with all of them left out.
    """
    if cost_share(frozenset()) <= 1:
        return frozenset()
    alone = {name: cost_share(nodes) for name, nodes in groups.items()}
    price = {name: sum(costs[node] for node in nodes) for name, nodes in groups.items()}
    enough = [name for name in groups if alone[name] <= 1]
    kept = frozenset[str]()
    for name in [min(enough, key=price.__getitem__)] if enough else sorted(groups, key=alone.__getitem__):
        kept |= groups[name]
        if cost_share(kept) <= 1:
            break
    else:
        return None
    for name in sorted(groups, key=price.__getitem__, reverse=True):
        if groups[name] <= kept and cost_share(kept - groups[name]) <= 1:
            kept -= groups[name]
    for node in sorted(kept, key=costs.__getitem__, reverse=True):
        if cost_share(kept - {node}) <= 1:
            kept -= {node}
    return kept


def quantized_layers(model: onnx.ModelProto) -> frozenset[str]:
    """Nodes of the matrix products whose operands are both 8-bit."""
    written = {output: node for node in model.graph.node for output in node.output}

    def is_int8(tensor: str) -> bool:
        source = source_of(tensor, written)
        return source in written and written[source].op_type == "DequantizeLinear"

    return frozenset(n.name for n in model.graph.node if n.op_type == "MatMul" and all(map(is_int8, n.input)))


def with_fp32(quantised: onnx.ModelProto, model: onnx.ModelProto, nodes: frozenset[str]) -> onnx.ModelProto:
    """A quantised body in which some matrix products read what they read in the FP32 body."""
    original = {node.name: node for node in model.graph.node}
    written = {output: node for node in model.graph.node for output in node.output}
    restored = set(nodes)
    for name in nodes:  # NNCF quantises before a Reshape or Transpose rather than behind it
        waiting = list(original[name].input)
        for tensor in waiting:
            if tensor in written and written[tensor].op_type in MOVING:
                restored.add(written[tensor].name)
                waiting.append(written[tensor].input[0])
    result = onnx.ModelProto()
    result.CopyFrom(quantised)
    graph = result.graph
    for node in graph.node:
        if node.name in restored:
            node.input[:] = original[node.name].input
    used = {output.name for output in graph.output}
    needed = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            needed.append(node)
    weights = {w.name: w for w in (*model.graph.initializer, *quantised.graph.initializer) if w.name in used}
    for field, values in (("node", needed[::-1]), ("initializer", list(weights.values()))):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)  # type: ignore[arg-type]
        getattr(graph, field).extend(copies)
    del graph.value_info[:]
    onnx.checker.check_model(result)
    return result


def exact(model: onnx.ModelProto) -> _Body:
    """A body in arithmetic that no CPU's INT8 kernels take part in: operator by operator, products in FP32."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would fuse the marks of INT8
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _in_batches(lambda batch: session.run(["BODY_FEATURES"], batch)[0])


def served(model: onnx.ModelProto, precision: ov.Type) -> _Body:
    """A body as OpenVINO serves it on this CPU; what is not INT8 is computed in `precision`."""
    graph = core().read_model(model.SerializeToString())
    compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return _in_batches(lambda batch: compiled(batch)["BODY_FEATURES"])


def _in_batches(run: Callable[[dict[str, np.ndarray]], np.ndarray], size: int = MAX_BATCH) -> _Body:
    def body(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        starts = range(0, len(inputs["FEATURES"]), size)
        return np.concatenate([run({name: x[i : i + size] for name, x in inputs.items()}) for i in starts])

    return body


def _scores(body: _Body, unseen: Sequence[HeldOut]) -> dict[str, float]:
    """PSNR in dB by task."""
    return {tiles.task.name: tiles.psnr(body(tiles.inputs)) for tiles in unseen}
