"""Typed FP16 and BF16 graphs: their types, their numbers, layers that overflow, and TensorRT's operator list."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers.support import SMALL, read_image, small_model
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ipt_triton.export.parts.checks import TENSORRT_OPERATORS, check_operators, check_types
from ipt_triton.export.parts.graph import GraphError, count_weights, layer_precision, list_layers, tensor_types
from ipt_triton.export.parts.parity import OpByOp, ParityError, chain, check_image, compare, real_tiles
from ipt_triton.export.parts.tracing import TRACER, Tracer
from ipt_triton.export.parts.typed import (
    INNER_PORTS,
    Peak,
    TypedOptions,
    largest_values,
    overflowing,
    peak_table,
    typed_graph,
)
from ipt_triton.train.data.degradations import degrade_image
from ipt_triton.train.model.ipt import IPT

pytestmark = pytest.mark.slow

TILES = real_tiles(48)[:2]
MODEL = small_model(config=replace(SMALL, tasks=SMALL.tasks[:1]))
KINDS = ("head", "body", "tail")
EVERY_KIND_OF_GRAPH = [(precision, residual) for precision in ("fp16", "bf16") for residual in ("fp32", "low")]


class Parts:
    """The FP32 parts of a task as ONNX, with the tensors that go in and come out as PyTorch computes them."""

    def __init__(self, model: IPT, task: str = "sr_x2"):
        modules = (model.heads[task], model.body, model.tails[task])
        with torch.inference_mode():
            features, embedding = model.heads[task](torch.from_numpy(TILES))
            body_features = model.body(features, embedding)
            restored = model.tails[task](body_features)
        names = ("IMAGE", "FEATURES", "TASK_EMBEDDING", "BODY_FEATURES", "RESTORED")
        values = (torch.from_numpy(TILES), features, embedding.detach().contiguous(), body_features, restored)
        tensors = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        ports = ((names[:1], names[1:3]), (names[1:3], names[3:4]), (names[3:4], names[4:]))
        self.graphs, self.inputs, self.outputs = {}, {}, {}
        for kind, module, (read, written) in zip(KINDS, modules, ports, strict=True):
            self.inputs[kind] = {name: tensors[name] for name in read}
            self.outputs[kind] = {name: tensors[name] for name in written}
            self.graphs[kind] = TRACER.graph(module, self.inputs[kind], written, kind)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(MODEL)


@pytest.fixture(scope="module")
def loud() -> Parts:
    """The same function, but one hidden layer of the decoder holds values a million times larger."""
    model = IPT(MODEL.config)
    model.load_state_dict(MODEL.state_dict())
    with torch.no_grad():
        layer = model.body.decoder[1]
        layer.linear1.weight *= 2.0**20
        layer.linear1.bias *= 2.0**20
        layer.linear2.weight /= 2.0**20
    return Parts(model.eval())


def types_of_ports(model: onnx.ModelProto) -> dict[str, str]:
    types = tensor_types(model)
    return {value.name: types[value.name] for value in [*model.graph.input, *model.graph.output]}


def fp32_layers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Names of the nodes that compute in FP32, casts left out, by operator."""
    check_types(model)
    found: dict[str, list[str]] = {}
    for name, operator, kind in list_layers(model):
        if kind == "fp32" and operator != "Cast":
            found.setdefault(operator, []).append(name)
    return found


def reader_of(model: onnx.ModelProto, weight: str) -> onnx.NodeProto:
    (node,) = (node for node in model.graph.node if weight in node.input)
    return node


@pytest.mark.parametrize(("precision", "residual"), EVERY_KIND_OF_GRAPH)
def test_only_norms_sums_and_means_stay_fp32(parts: Parts, precision: str, residual: str):
    fp32: dict[str, set[str]] = {}
    for kind, graph in parts.graphs.items():
        fp32[kind] = set(fp32_layers(typed_graph(graph, TypedOptions(precision, residual))))
    convolutions = {"Conv"} if precision == "bf16" else set()  # ONNX has none of BF16 at opset 18
    streams = {"Add"} if residual == "fp32" else set()
    assert fp32["head"] - {"Relu"} == {"Sub"} | convolutions | streams
    assert fp32["body"] - {"Reshape", "Transpose"} == {"LayerNormalization"} | streams
    assert fp32["tail"] - {"DepthToSpace"} == {"Add"} | convolutions


def test_residual_sums_are_fp32_and_biases_are_not(parts: Parts):
    body = parts.graphs["body"]
    fp32 = fp32_layers(typed_graph(body, TypedOptions()))
    biases = {n.name for n in body.graph.node if n.op_type == "Add" and any(i.endswith("bias") for i in n.input)}
    layers = 2 * 2 + 2 * 3  # of the encoder and the decoder, each with its sums
    assert len(fp32["Add"]) == layers + 4  # position table, linear encoding, output layers, the head's features
    assert not biases & set(fp32["Add"])
    assert len(fp32["LayerNormalization"]) == layers


def test_the_same_weights_give_the_same_bytes_or_engines_would_not_fit_their_parts(parts: Parts):
    again = Tracer().graph(MODEL.body, parts.inputs["body"], list(parts.outputs["body"]), "body")
    assert again.SerializeToString() == parts.graphs["body"].SerializeToString()
    for options in (TypedOptions(), TypedOptions("bf16", "low")):
        typed = typed_graph(parts.graphs["body"], options).SerializeToString()
        assert typed == typed_graph(again, options).SerializeToString()


def test_weights_are_stored_once_and_in_the_low_type(parts: Parts):
    for precision, low in (("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)):
        body = parts.graphs["body"]
        typed = typed_graph(body, TypedOptions(precision))
        matrices = [w for w in typed.graph.initializer if len(w.dims) == 2 and "position" not in w.name]
        assert len(matrices) == 1 + 2 * 6 + 2 * 10 + 2  # linear encoding, encoder, decoder, output layers
        assert {w.data_type for w in matrices} == {low}
        assert 0.5 < typed.ByteSize() / body.ByteSize() < 0.6


@pytest.mark.parametrize("precision", ("fp16", "bf16"))
def test_tensors_between_the_parts_are_fp16_and_those_of_callers_fp32(parts: Parts, precision: str):
    for fp16_ports in (INNER_PORTS, frozenset({"FEATURES"}), frozenset[str]()):
        for graph in parts.graphs.values():
            typed = typed_graph(graph, TypedOptions(precision, fp16_ports=fp16_ports))
            assert types_of_ports(typed) == {n: "fp16" if n in fp16_ports else "fp32" for n in types_of_ports(graph)}
            check_types(typed)
            for before, after in zip(
                [*graph.graph.input, *graph.graph.output], [*typed.graph.input, *typed.graph.output], strict=True
            ):
                assert before.name == after.name
                assert before.type.tensor_type.shape == after.type.tensor_type.shape


@pytest.mark.parametrize(("precision", "residual"), EVERY_KIND_OF_GRAPH)
def test_typed_parts_pass_the_parity_gate(parts: Parts, precision: str, residual: str):
    for kind, graph in parts.graphs.items():
        typed = typed_graph(graph, TypedOptions(precision, residual))
        parity = compare(kind, OpByOp(typed)(parts.inputs[kind]), parts.outputs[kind], precision)
        assert parity.tiles == len(TILES)
        # Of BF16, convolutions are FP32 and what they read and write is FP16.
        low, high = (48, 80) if precision == "bf16" and kind == "body" else (60, 95)
        assert low < parity.psnr < high  # a higher figure would mean that nothing was rounded


def test_part_that_differs_is_refused_with_its_figures(parts: Parts):
    typed = typed_graph(parts.graphs["tail"], TypedOptions())
    expected = {"RESTORED": parts.outputs["tail"]["RESTORED"] + 1.0}
    with pytest.raises(ParityError, match=r"part tail: fp16 max .*PSNR 48\.\d dB; allowed are .* 50\.0 dB"):
        compare("tail", OpByOp(typed)(parts.inputs["tail"]), expected, "fp16")


def test_operators_are_rounded_one_by_one():
    value, one = helper.make_tensor_value_info, numpy_helper.from_array(np.float16([1]), "one")
    nodes = [helper.make_node("Add", [a, "one"], [b], b) for a, b in (("x", "y"), ("y", "z"))]
    ports = [[value(name, TensorProto.FLOAT16, [1])] for name in "xz"]
    graph = helper.make_graph(nodes, "sums", *ports, [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    # The neighbours of 2048 in FP16 are 2047 and 2050: each sum is rounded back. In FP32, rounded at the end: 2050.
    assert OpByOp(model)({"x": np.float16([2048])})["z"] == 2048


@pytest.mark.parametrize("kind", KINDS)
def test_operator_by_operator_agrees_with_the_reference_implementation_of_onnx(parts: Parts, kind: str):
    typed = typed_graph(parts.graphs[kind], TypedOptions(residual="low"))
    types = types_of_ports(typed)
    inputs = {n: x[:1].astype(np.float16 if types[n] == "fp16" else np.float32) for n, x in parts.inputs[kind].items()}
    ours = OpByOp(typed)(inputs)
    for output, theirs in zip(typed.graph.output, ReferenceEvaluator(typed).run(None, inputs), strict=True):
        difference = np.abs(ours[output.name] - theirs.astype(np.float32))
        away = np.abs(ours[output.name] - parts.outputs[kind][output.name][:1])
        assert difference.mean() <= away.mean() * 1.5  # both are rounded at every step, and not alike at each
        assert difference.max() < 1


def test_largest_values_are_those_that_pytorch_sees(parts: Parts):
    peaks = {peak.layer: peak for peak in largest_values(parts.graphs["body"], parts.inputs["body"])}
    seen: list[float] = []
    hook = MODEL.body.out1.register_forward_hook(lambda module, given, result: seen.append(float(result.abs().max())))
    with torch.inference_mode():
        MODEL.body(*(torch.from_numpy(x) for x in parts.inputs["body"].values()))
    hook.remove()
    peak = peaks[reader_of(parts.graphs["body"], "out1.bias").name]
    assert peak.operator == "Add"
    assert peak.largest == pytest.approx(seen[0], rel=0.2)  # or the product before its bias
    assert peak.largest >= seen[0] * (1 - 1e-5)


def test_table_of_largest_values_begins_with_the_largest():
    table = peak_table([Peak("a", "MatMul", "x", 10.0), Peak("b", "Conv", "y", 32752.0)]).splitlines()
    assert table[2] == "| b | Conv | y | 3.275e+04 | 50.00% |"
    assert table[3].startswith("| a | MatMul | x | 10 |")


def test_half_of_the_limit_counts_as_overflow_already():
    peaks = [Peak("a", "MatMul", "x", 32752.0), Peak("b", "MatMul", "y", 32753.0)]
    assert overflowing(peaks, "fp16") == {"b"}
    assert overflowing(peaks, "fp16", headroom=1.0) == frozenset()


def test_layer_that_overflows_is_found_and_stays_fp32_by_name(loud: Parts):
    body = loud.graphs["body"]
    inputs, outputs = loud.inputs["body"], loud.outputs["body"]
    with pytest.raises(GraphError, match=r"weight .* of part body reaches .*, beyond fp16; keep the layers that read"):
        typed_graph(body, TypedOptions())

    keep = overflowing(largest_values(body, inputs), "fp16")
    bias = reader_of(body, "decoder.1.linear1.bias")
    kept = [node for node in body.graph.node if node.name in keep]
    assert bias.name in keep
    assert sorted(node.op_type for node in kept) == ["Add", "MatMul", "MatMul", "Relu"]
    typed = typed_graph(body, TypedOptions(keep=keep))
    assert fp32_layers(typed)["MatMul"] == [node.name for node in kept if node.op_type == "MatMul"]
    assert compare("body", OpByOp(typed)(inputs), outputs, "fp16").psnr > 60


def test_overflow_that_nobody_kept_is_refused(loud: Parts):
    body = loud.graphs["body"]
    keep = overflowing(largest_values(body, loud.inputs["body"]), "fp16")
    first = next(node.name for node in body.graph.node if node.name in keep and node.op_type == "MatMul")
    layer = frozenset({first, reader_of(body, "decoder.1.linear1.bias").name})
    typed = typed_graph(body, TypedOptions(keep=layer))  # its weights fit now; who reads its results does not know
    with pytest.raises(ParityError, match="part body in fp16: BODY_FEATURES holds NaN or Inf; not published"):
        compare("body", OpByOp(typed)(loud.inputs["body"]), loud.outputs["body"], "fp16")


def test_bf16_needs_no_layer_kept(loud: Parts):
    assert overflowing(largest_values(loud.graphs["body"], loud.inputs["body"]), "bf16") == frozenset()


def test_nan_in_fp32_is_reported_with_its_node(parts: Parts):
    broken = {**parts.inputs["tail"]}
    broken["BODY_FEATURES"] = np.full_like(broken["BODY_FEATURES"], np.nan)
    with pytest.raises(GraphError, match="node node_conv2d of part tail holds NaN or Inf in FP32, in BODY_FEATURES"):
        largest_values(parts.graphs["tail"], broken)


def test_an_attention_is_kept_whole(parts: Parts):
    body = parts.graphs["body"]
    softmax = next(node.name for node in body.graph.node if node.op_type == "Softmax")
    fp32 = fp32_layers(typed_graph(body, TypedOptions(keep=frozenset({softmax}))))
    assert fp32["Softmax"] == [softmax]
    assert [len(fp32[operator]) for operator in ("Mul", "MatMul")] == [1, 2]


def test_unknown_names_are_errors(parts: Parts):
    with pytest.raises(GraphError, match="part tail has no node out1 to keep"):
        typed_graph(parts.graphs["tail"], TypedOptions(keep=frozenset({"out1"})))
    with pytest.raises(GraphError, match="precision 'int8' is not one of fp16, bf16"):
        TypedOptions("int8")
    with pytest.raises(GraphError, match="residual 'fp16' is not one of fp32, low"):
        TypedOptions(residual="fp16")


def retyped(model: onnx.ModelProto, weight: str, kind: type) -> onnx.ModelProto:
    """A copy with one weight in another type."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (found,) = (w for w in copy.graph.initializer if w.name == weight)
    found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found).astype(kind), weight))
    return copy


def test_mixed_types_are_refused_with_the_node(parts: Parts):
    typed = typed_graph(parts.graphs["head"], TypedOptions())
    with pytest.raises(GraphError, match=r"part head is not typed consistently: .*node_conv2d\): B has inconsistent"):
        check_types(retyped(typed, "conv.bias_fp16", np.float32))
    typed.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(GraphError, match="part head is not typed consistently"):
        check_types(typed)
    body = typed_graph(parts.graphs["body"], TypedOptions())
    bias = next(w.name for w in body.graph.initializer if w.name.startswith("decoder.1.linear1.bias"))
    with pytest.raises(GraphError, match=r"part body is not typed consistently: .*Add"):
        check_types(retyped(body, bias, np.float32))
    with pytest.raises(GraphError, match=r"part body is not typed consistently: .*LayerNormalization"):
        check_types(retyped(body, "decoder.1.norm3.bias", np.float16))


@pytest.mark.parametrize(("kind", "precision"), [(TensorProto.FLOAT16, "fp16"), (TensorProto.BFLOAT16, "bf16")])
def test_a_graph_computes_in_the_type_of_the_weights_that_it_multiplies(kind: int, precision: str) -> None:
    ports = [helper.make_tensor_value_info(name, kind, ["n", size]) for name, size in (("x", 4), ("y", 300))]

    def graph(product: int, scale: int) -> onnx.ModelProto:
        weights = [
            helper.make_tensor("w", product, [4, 300], [0.5] * 1200),
            helper.make_tensor("scale", scale, [300], [1.0] * 300),
        ]
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
            helper.make_node("Mul", ["p", "scale"], ["y"]),
        ]
        return helper.make_model(helper.make_graph(nodes, "typed", ports[:1], ports[1:], weights))

    low, full = graph(kind, TensorProto.FLOAT), graph(TensorProto.FLOAT, kind)
    assert layer_precision(low, precision) == precision and layer_precision(full, precision) == "fp32"
    assert layer_precision(low, "fp32") == "fp32"
    assert count_weights(low) == count_weights(full) == 1500
    assert list_layers(graph(kind, kind)) == (("product", "MatMul", precision), ("", "Mul", precision))


def test_softmax_alone_in_fp32_is_refused(parts: Parts):
    typed = typed_graph(parts.graphs["body"], TypedOptions())
    softmax = next(node for node in typed.graph.node if node.op_type == "Softmax")
    before, after = softmax.input[0], softmax.output[0]
    softmax.input[0], softmax.output[0] = "wide_scores", "wide_weights"
    position = list(typed.graph.node).index(softmax)
    typed.graph.node.insert(position, helper.make_node("Cast", [before], ["wide_scores"], "up", to=TensorProto.FLOAT))
    typed.graph.node.insert(
        position + 2, helper.make_node("Cast", ["wide_weights"], [after], "down", to=TensorProto.FLOAT16)
    )
    with pytest.raises(GraphError, match="does not stand in Mul, MatMul, Softmax, MatMul"):
        check_types(typed)


def test_normalisation_in_fp16_is_refused():
    value = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(np.ones(4, np.float16), name) for name in ("scale", "bias")]
    node = helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["y"], "norm")
    graph = helper.make_graph([node], "body", *[[value(n, TensorProto.FLOAT16, ["n", 4])] for n in "xy"], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(GraphError, match="node norm of part body normalises in fp16; it must be FP32"):
        check_types(model)
    model.ir_version = 11
    with pytest.raises(GraphError, match="part body must be of opset 18 and IR version 10"):
        check_types(model)


@pytest.mark.parametrize("version", TENSORRT_OPERATORS)
def test_typed_graphs_are_of_operators_that_tensorrt_publishes(parts: Parts, version: str):
    body = typed_graph(parts.graphs["body"], TypedOptions("bf16"))
    assert "bf16" in tensor_types(body).values()
    for graph in parts.graphs.values():
        for residual in ("fp32", "low"):
            check_operators(typed_graph(graph, TypedOptions(residual=residual)), version)
            bf16 = typed_graph(graph, TypedOptions("bf16", residual))
            if version == "8.6" and "bf16" in tensor_types(bf16).values():
                with pytest.raises(GraphError, match=r"TensorRT 8\.6 does not take .*Cast of bf16"):
                    check_operators(bf16, version)
            else:
                check_operators(bf16, version)


def test_fp32_graphs_are_valid_in_the_opset_of_tensorrt_8(parts: Parts):
    for graph in parts.graphs.values():
        check_operators(graph, "8.6")


def test_operators_and_opsets_beyond_the_list_are_refused(parts: Parts):
    body = onnx.ModelProto()
    body.CopyFrom(parts.graphs["body"])
    reshape = next(node for node in body.graph.node if node.op_type == "Reshape")
    reshape.attribute.append(helper.make_attribute("num_outputs", 2))
    with pytest.raises(GraphError, match=r"part body is of opset 18 and not valid in 17, .*num_outputs"):
        check_operators(body, "8.6")
    tail = onnx.ModelProto()
    tail.CopyFrom(parts.graphs["tail"])
    tail.opset_import[0].version = 6
    with pytest.raises(GraphError, match=r"part tail is of opset 6; TensorRT 8\.6 takes 7 to 17"):
        check_operators(tail, "8.6")
    tail.CopyFrom(parts.graphs["tail"])
    tail.graph.node[0].op_type = "ConvInteger"
    with pytest.raises(GraphError):
        check_operators(tail, "10.15")
    tail.CopyFrom(parts.graphs["tail"])
    tail.graph.node[-1].op_type = "Div"
    with pytest.raises(GraphError, match=r"TensorRT 10\.15 does not take Div of fp32"):
        check_operators(tail, "10.15")


@pytest.fixture(scope="module")
def photograph() -> tuple[np.ndarray, np.ndarray]:
    """A clean crop and its half-size version."""
    clean = read_image("kitten")[100:260, 100:292]
    return clean, degrade_image(clean, MODEL.config.tasks[0], 0)


def test_whole_image_in_fp16_is_the_fp32_image_and_no_worse(parts: Parts, photograph: tuple[np.ndarray, np.ndarray]):
    clean, image = photograph
    full = chain([OpByOp(graph) for graph in parts.graphs.values()])
    for residual in ("fp32", "low"):
        options = TypedOptions(residual=residual)
        typed = chain([OpByOp(typed_graph(graph, options)) for graph in parts.graphs.values()])
        parity = check_image("kitten", image, clean, 2, full, typed, "fp16")
        assert 60 < parity.psnr < 100
        assert parity.loss is not None and parity.full is not None
        assert abs(parity.loss) <= 0.02
        assert parity.full > 15
    alone = check_image("kitten", image, None, 2, full, typed, "fp16")
    assert (alone.psnr, alone.full, alone.loss) == (parity.psnr, None, None)
    assert str(alone) == f"fp16 {alone.psnr:.1f} dB to FP32"


def test_image_that_differs_or_is_worse_is_refused(parts: Parts, photograph: tuple[np.ndarray, np.ndarray]):
    clean, image = photograph
    full = chain([OpByOp(graph) for graph in parts.graphs.values()])
    with pytest.raises(ParityError, match=r"image kitten: fp16 42\.1 dB to FP32, .*; allowed are 50\.0 dB"):
        check_image("kitten", image, clean, 2, full, lambda patches: full(patches) + 2, "fp16")
    with pytest.raises(ParityError, match="image kitten in fp16: the network returned NaN or Inf for"):
        check_image("kitten", image, clean, 2, full, lambda patches: full(patches) * np.float32("nan"), "fp16")

    def perfect(patches: np.ndarray) -> np.ndarray:  # so that a small change is a loss against ground truth
        return np.kron(patches, np.ones((1, 1, 2, 2), np.float32))

    noise = np.random.default_rng(0).normal(0, 0.5, (3, 96, 96)).astype(np.float32)
    smooth = np.kron(image, np.ones((2, 2, 1), np.float32)).astype(np.uint8)
    smooth[::7] ^= 1
    with pytest.raises(ParityError, match=r"loss \+\d\.\d+ dB; allowed are 50\.0 dB and a loss of 0\.02 dB"):
        check_image("kitten", image, smooth, 2, perfect, lambda patches: perfect(patches) + noise, "fp16")
