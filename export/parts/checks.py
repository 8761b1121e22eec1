"""Checks of typed graphs that need no GPU: types, TensorRT's operator list, and the numbers of every operator.

ONNX Runtime is no judge of a low-precision graph as a whole: its CPU provider has no FP16 convolution, matrix product
or softmax, computes them in FP32, and drops the casts between them, so that a chain of layers is rounded once at its
end (and BF16 it refuses). `OpByOp` therefore runs the graph one operator at a time and rounds every result to its
declared type: what a GPU does that multiplies in the low type and sums in FP32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from ipt_triton.export.parts.graph import GraphError
from ipt_triton.export.parts.typed import FP32, NUMPY_TYPES, attentions, tensor_types
from ipt_triton.manifest import IR_VERSION, OPSET, ImageParity, Parity
from ipt_triton.metrics import psnr_of_error, psnr_y, to_uint8
from ipt_triton.parity import ParityError, compare
from ipt_triton.tiling import PATCH, Tiler

_FLOATS_8 = frozenset({"fp32", "fp16"})
_FLOATS_10 = frozenset({"fp32", "fp16", "bf16"})
_MOVING = ("Concat", "Expand", "Reshape", "Shape", "Transpose")
_SUMS = ("Add", "Mul", "Sub")
_FLOAT_ONLY = ("Conv", "LayerNormalization", "MatMul", "Softmax")


@dataclass(frozen=True)
class OperatorList:
    """What a version of TensorRT's ONNX parser takes, as far as the parts need it.

    Attributes:
        opsets: oldest and newest operator set.
        types: types by operator. Shapes are INT64; 8.6 narrows them to INT32 as it reads.
    """

    opsets: tuple[int, int]
    types: Mapping[str, frozenset[str]]


_TYPES_8: dict[str, frozenset[str]] = {
    **dict.fromkeys((*_MOVING, *_SUMS, "Cast", "DepthToSpace"), _FLOATS_8 | {"int64"}),
    **dict.fromkeys((*_FLOAT_ONLY, "Relu"), _FLOATS_8),
}
_TYPES_10: dict[str, frozenset[str]] = {
    **dict.fromkeys((*_MOVING, *_SUMS, "Cast", "DepthToSpace", "Relu"), _FLOATS_10 | {"int64"}),
    **dict.fromkeys(_FLOAT_ONLY, _FLOATS_10),
}
TENSORRT_OPERATORS = {
    "8.6": OperatorList((7, 17), _TYPES_8),
    "10.1": OperatorList((9, 20), _TYPES_10),
    "10.15": OperatorList((9, 24), _TYPES_10),
}
"""onnx-tensorrt, docs/operators.md: branches 8.6-GA (ee0b139) and 10.1-GA (96e7811), and the file of 10.15 (2026-02).
10.1 and 10.15 agree in every operator listed here, so the versions between them do."""


def check_operators(model: onnx.ModelProto, version: str) -> None:
    """Hold a graph against TensorRT's published operators and types.

    A graph of a newer operator set than the version publishes must be valid, as it stands, in the newest that it does.

    Raises:
        GraphError: names the operators and types, or the opset, and the version.
    """
    allowed = TENSORRT_OPERATORS[version]
    types = tensor_types(model)
    used = {(n.op_type, types[t]) for n in model.graph.node for t in (*n.input, *n.output) if t}
    wrong = sorted(f"{op} of {kind}" for op, kind in used if kind not in allowed.types.get(op, frozenset()))
    if wrong:
        raise GraphError(f"part {model.graph.name}: TensorRT {version} does not take {', '.join(wrong)}")
    (opset,) = (entry.version for entry in model.opset_import)
    oldest, newest = allowed.opsets
    if opset < oldest:
        raise GraphError(f"part {model.graph.name} is of opset {opset}; TensorRT {version} takes {oldest} to {newest}")
    if opset > newest:
        older = onnx.ModelProto()
        older.CopyFrom(model)
        older.opset_import[0].version = newest
        try:
            onnx.checker.check_model(older, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise GraphError(
                f"part {model.graph.name} is of opset {opset} and not valid in {newest}, the newest that TensorRT "
                f"{version} takes: {error}"
            ) from None


@dataclass(frozen=True)
class TypeReport:
    """Where which type stands.

    Attributes:
        counts: number of nodes by the type that they write.
        fp32: names of the nodes that compute in FP32, casts left out, by operator.
        casts: number of casts.
    """

    counts: dict[str, int]
    fp32: dict[str, list[str]]
    casts: int


def check_types(model: onnx.ModelProto) -> TypeReport:
    """Prove a graph strongly typed: types follow from inputs and weights alone, and no operator mixes them.

    Also that LayerNormalization is in FP32, that every attention is the plain pattern, whose operators then have one
    type, and that opset and IR version are the pinned ones.

    Raises:
        GraphError: names the node.
    """
    name = model.graph.name
    if ([(e.domain, e.version) for e in model.opset_import], model.ir_version) != ([("", OPSET)], IR_VERSION):
        raise GraphError(f"part {name} must be of opset {OPSET} and IR version {IR_VERSION}")
    types = tensor_types(model)  # refuses operators with unlike operands
    attentions(model)
    fp32: dict[str, list[str]] = {}
    for node in model.graph.node:
        kind = types[node.output[0]]
        if node.op_type == "LayerNormalization" and kind != FP32:
            raise GraphError(f"node {node.name} of part {name} normalises in {kind}; it must be FP32")
        if node.op_type != "Cast" and kind == FP32:
            fp32.setdefault(node.op_type, []).append(node.name)
    counts = Counter(types[node.output[0]] for node in model.graph.node)
    return TypeReport(dict(counts), fp32, sum(node.op_type == "Cast" for node in model.graph.node))


@dataclass(frozen=True)
class ImageTolerance:
    """What a low type may cost a whole image: least PSNR in dB against the FP32 result (floating values, peak 255), and
    largest loss of PSNR-Y in dB against ground truth (8-bit values)."""

    psnr: float
    loss: float


IMAGE_TOLERANCES = {"fp16": ImageTolerance(50.0, 0.02), "bf16": ImageTolerance(45.0, 0.1)}


class OpByOp:
    """Runs a typed graph operator by operator, each in FP32 with its result rounded to the declared type.

    Values are float32 arrays that hold numbers of the declared type. Overflow gives Inf, as it does on a GPU.
    """

    def __init__(self, model: onnx.ModelProto):
        self.name = model.graph.name
        self._types = tensor_types(model)
        self._model = model
        self._weights = {w.name: _widen(onnx.numpy_helper.to_array(w)) for w in model.graph.initializer}
        self._last_use = {t: i for i, node in enumerate(model.graph.node) for t in node.input}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._settings = onnxruntime.SessionOptions()
        self._settings.intra_op_num_threads = 1  # or each operator's thread pool would spin beside the others

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for samples [n, ...] by input name."""
        wanted = {o.name for o in self._model.graph.output}
        values = {i.name: self._rounded(i.name, inputs[i.name]) for i in self._model.graph.input}
        for index, node in enumerate(self._model.graph.node):
            given = {t: self._weights[t] if t in self._weights else values[t] for t in node.input if t}
            results = [given[node.input[0]]] if node.op_type == "Cast" else self._run(node, given)
            values |= {t: self._rounded(t, x) for t, x in zip(node.output, results, strict=True)}
            for name in node.input:
                if self._last_use[name] == index and name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def _run(self, node: onnx.NodeProto, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        if node.name not in self._sessions:
            value, element = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
            inputs = [value(t, element(x.dtype), [None] * x.ndim) for t, x in given.items()]
            kind = TensorProto.INT64 if self._types[node.output[0]] == "int64" else TensorProto.FLOAT
            outputs = [value(t, kind, None) for t in node.output]
            graph = onnx.helper.make_graph([node], node.name, inputs, outputs)
            single = onnx.helper.make_model(
                graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
            )
            self._sessions[node.name] = onnxruntime.InferenceSession(
                single.SerializeToString(), self._settings, providers=["CPUExecutionProvider"]
            )
        results: list[np.ndarray] = self._sessions[node.name].run(None, given)
        return results

    def _rounded(self, name: str, value: np.ndarray) -> np.ndarray:
        kind = NUMPY_TYPES.get(self._types[name])
        with np.errstate(over="ignore"):
            return _widen(value if kind is None else value.astype(kind))


def _widen(value: np.ndarray) -> np.ndarray:
    return value if value.dtype == np.int64 else value.astype(np.float32)


def check_typed_part(
    part: OpByOp, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str
) -> Parity:
    """Run a typed part operator by operator on real tiles and compare with what PyTorch computed in FP32.

    Raises:
        ParityError: NaN or Inf, or a difference above the precision's tolerance; names part and figures.
    """
    return compare(part.name, part(inputs), expected, precision)


Network = Callable[[np.ndarray], np.ndarray]
"""Patches [n, 3, P, P] in 0..255 -> restored patches [n, 3, P·scale, P·scale], float32."""


def chain(parts: Sequence[OpByOp]) -> Network:
    """Head, body and tail of a task in a row, typed or FP32, run operator by operator."""

    def network(patches: np.ndarray) -> np.ndarray:
        values = {"IMAGE": patches}
        for part in parts:
            values = part(values)
        return values["RESTORED"]

    return network


def check_image(
    name: str,
    image: np.ndarray,
    clean: np.ndarray | None,
    scale: int,
    full: Network,
    typed: Network,
    precision: str,
    patch: int = PATCH,
) -> ImageParity:
    """Restore an image by an FP32 network and by its typed one, tile by tile, and compare.

    Args:
        image: float32 [height, width, 3] on the 0..255 scale.
        clean: uint8 [height * scale, width * scale, 3], None where there is no ground truth.

    Raises:
        ParityError: NaN or Inf, too far from the FP32 result, or too much worse against ground truth; names the image.
    """
    allowed = IMAGE_TOLERANCES[precision]
    try:
        wanted, restored = (_restore(image, scale, network, patch) for network in (full, typed))
    except FloatingPointError as error:
        raise ParityError(f"image {name} in {precision}: {error}") from None
    parity = ImageParity(precision, psnr_of_error(float(np.square(restored.astype(np.float64) - wanted).mean())))
    if clean is not None:
        best, reached = (psnr_y(to_uint8(x), clean, scale if scale > 1 else 0) for x in (wanted, restored))
        parity = replace(parity, full=best, loss=best - reached)
    if parity.psnr < allowed.psnr or (parity.loss or 0.0) > allowed.loss:
        raise ParityError(
            f"image {name}: {parity}; allowed are {allowed.psnr} dB and a loss of {allowed.loss} dB; not published"
        )
    return parity


def _restore(image: np.ndarray, scale: int, network: Network, patch: int, batch: int = 8) -> np.ndarray:
    """A whole image in floating values, neither rounded nor clipped."""
    tiler = Tiler(image, scale, patch, floating=True)
    for first, last in tiler.batches(batch):
        tiler.add(network(tiler.patches(first, last)))
    return tiler.result()
