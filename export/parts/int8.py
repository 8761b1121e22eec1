"""INT8: post-training quantisation of a body by NNCF, held to what it may cost.

Weights and activations of the matrix products become 8 bits (QuantizeLinear and DequantizeLinear in the ONNX graph);
norms, sums and Softmax stay as they are. Activations get the range of the calibration tiles from end to end: NNCF's
default, the mean of the tiles' ranges, clips the rare large values that flat areas of a picture hang on. The loss is
judged by the PSNR of each task on tiles that calibration has not seen, and by the parity gate's tiles, where a single
value that is clipped shows. Where it is too large, the layers that cost most go back to FP32, exactly as they were, and
are named.

    quantized = quantize_body(onnx.load("body.onnx"), samples, judges, gate)     # export/parts/calibration.py
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
import openvino as ov

from ipt_triton.errors import IptError
from ipt_triton.export.parts.calibration import HeldOut
from ipt_triton.export.parts.flops import flops_of_nodes
from ipt_triton.export.parts.layer_names import MOVING, groups_of, layer_names, named, source_of
from ipt_triton.export.parts.parity import inference_type
from ipt_triton.manifest import Parity
from ipt_triton.parity import TOLERANCES, measure

logger = logging.getLogger(__name__)

MAX_LOSS = 0.1
"""PSNR in dB that INT8 may cost any task."""

MIN_SHARE = 0.5
"""Share of the multiplications that must be INT8, or it is not worth its loss."""


class QuantizationError(IptError, ValueError):
    """A body that INT8 costs too much, or no NNCF to quantise it with."""


@dataclass(frozen=True)
class Quantized:
    """A body in INT8.

    Attributes:
        kept: layers that are not INT8, as `export.parts.layer_names` calls them.
        share: of the multiplications, how many are INT8, 0 to 1.
        loss: PSNR in dB that INT8 costs each task on held-out tiles.
    """

    model: onnx.ModelProto
    kept: tuple[str, ...]
    share: float
    loss: dict[str, float]


@dataclass(frozen=True)
class Gate:
    """What the parity gate will ask of the body: inputs, and what PyTorch makes of them."""

    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Trial:
    """Loss in dB by task on held-out tiles, and parity on the gate's."""

    loss: dict[str, float]
    parity: Parity

    def strain(self, allowed: float) -> float:
        """Above 1 it costs a task more than `allowed` dB, or is refused by the gate."""
        return max(max(self.loss.values()) / allowed, TOLERANCES["int8"].used_by(self.parity))

    def __str__(self) -> str:
        return ", ".join(f"{task} {value:+.3f} dB" for task, value in self.loss.items()) + f", {self.parity}"


def quantize_body(
    model: onnx.ModelProto,
    samples: Sequence[Mapping[str, np.ndarray]],
    judges: Sequence[HeldOut],
    gate: Gate,
    allowed: float = MAX_LOSS,
) -> Quantized:
    """Quantise a body so that no task loses more than `allowed` dB and the parity gate takes it.

    Args:
        model: FP32 body, as `export.parts.split` writes it.
        samples: what to calibrate on, one tile each, of all its tasks.
        judges: held-out tiles, one for each of its tasks.

    Raises:
        QuantizationError: NNCF is not installed, or less than `MIN_SHARE` of the body can be INT8 within the bounds.
    """
    everything = post_training(model, samples)
    layers = layer_names(model)
    groups = groups_of(layers)
    costs = {node.name: flops for node, flops in zip(model.graph.node, flops_of_nodes(model), strict=True)}
    full = _scores(_compiled(model, ov.Type.f32), judges)

    @cache
    def trial(kept: frozenset[str]) -> _Trial:
        body = _compiled(with_fp32(everything, model, kept), inference_type("int8"))
        reached = _scores(body, judges)
        results = {"BODY_FEATURES": body(gate.inputs)}
        parity = measure(model.graph.name, results, gate.expected, "int8")
        found = _Trial({task: full[task] - reached[task] for task in full}, parity)
        logger.info("INT8 without %s: %s", ", ".join(named(kept, groups, layers)) or "exceptions", found)
        return found

    eligible = quantized_layers(everything)
    chosen = choose_kept(
        {name: nodes & eligible for name, nodes in groups.items() if nodes & eligible},
        costs,
        lambda kept: trial(kept).strain(allowed),
    )
    if chosen is None:
        raise QuantizationError(
            f"INT8 costs body {model.graph.name} more than {allowed} dB or fails the parity gate whatever is left out "
            f"({trial(eligible)}); use --precision bf16"
        )
    result = with_fp32(everything, model, chosen)
    inside = quantized_layers(result)
    share = sum(costs[node] for node in inside) / sum(costs.values())
    kept = named(frozenset(layers) - inside, groups, layers)
    if share < MIN_SHARE:
        raise QuantizationError(
            f"only {share:.0%} of body {model.graph.name} can be INT8 within {allowed} dB and the parity gate "
            f"(not {', '.join(kept)}); use --precision bf16"
        )
    return Quantized(result, kept, share, trial(chosen).loss)


def post_training(model: onnx.ModelProto, samples: Sequence[Mapping[str, np.ndarray]]) -> onnx.ModelProto:
    """The body with every layer in INT8 that NNCF quantises in a transformer; progress goes to stderr.

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
    with contextlib.redirect_stdout(sys.stderr):
        quantised: onnx.ModelProto = nncf.quantize(
            model,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
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
    strain: Callable[[frozenset[str]], float],
) -> frozenset[str] | None:
    """Nodes to leave out of INT8 so that the `strain` without them is at most 1; few and cheap ones, not all.

    The groups are ranked by what each gains alone and left out in that order until the bound holds. Then group by
    group and node by node, the most expensive first, what is not needed goes back to INT8. At most three trials for
    each group, and one for each node left out. None if the bound does not hold with all of them left out.
    """
    if strain(frozenset()) <= 1:
        return frozenset()
    alone = {name: strain(nodes) for name, nodes in groups.items()}
    price = {name: sum(costs[node] for node in nodes) for name, nodes in groups.items()}
    enough = [name for name in groups if alone[name] <= 1]
    kept = frozenset[str]()
    for name in [min(enough, key=price.__getitem__)] if enough else sorted(groups, key=alone.__getitem__):
        kept |= groups[name]
        if strain(kept) <= 1:
            break
    else:
        return None
    for name in sorted(groups, key=price.__getitem__, reverse=True):
        if groups[name] <= kept and strain(kept - groups[name]) <= 1:
            kept -= groups[name]
    for node in sorted(kept, key=costs.__getitem__, reverse=True):
        if strain(kept - {node}) <= 1:
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


def _compiled(model: onnx.ModelProto, precision: ov.Type) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A body as it is served: inputs of n tiles to BODY_FEATURES."""
    core = ov.Core()
    graph = core.read_model(model.SerializeToString())
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        count = len(inputs["FEATURES"])
        batches = [{name: x[i : i + 8] for name, x in inputs.items()} for i in range(0, count, 8)]
        return np.concatenate([compiled(batch)["BODY_FEATURES"] for batch in batches])

    return run


def _scores(body: Callable[[Mapping[str, np.ndarray]], np.ndarray], judges: Sequence[HeldOut]) -> dict[str, float]:
    """PSNR in dB by task."""
    return {judge.task.name: judge.psnr(body(judge.inputs)) for judge in judges}
