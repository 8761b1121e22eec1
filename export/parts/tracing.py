"""From a module to its ONNX graph. Parts of one structure, like the heads of all tasks, are traced once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ipt_triton.export.parts.graph import clean_graph
from ipt_triton.manifest import LARGEST_BATCH, OPSET
from ipt_triton.train.model.onnx import for_onnx


class Tracer:
    """Makes graphs of modules. One whose structure it has traced before gets that graph with its own weights.

    Tracing takes seconds whatever the size. The structure of a module is its type, its layers and the shapes of its
    weights. Whoever publishes a graph compares it with its module (`parity`), so a weight that took another way into
    the graph than by its name would be found.
    """

    def __init__(self) -> None:
        self._traced: dict[object, onnx.ModelProto] = {}

    def graph(
        self, module: nn.Module, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], name: str
    ) -> onnx.ModelProto:
        """A module as a clean graph of this name with a dynamic batch.

        Args:
            inputs: a batch of at least two for each input, by name.
            outputs: names of the outputs.

        Raises:
            GraphError: operators that the runtimes do not take.
        """
        weights = _weights(module)
        structure = (
            type(module),
            repr(module),
            tuple((key, value.shape, value.dtype) for key, value in weights.items()),
            tuple((key, value.shape[1:], value.dtype) for key, value in inputs.items()),
            tuple(outputs),
        )
        if structure not in self._traced:
            traced = _trace(module, inputs, outputs)
            if not weights.keys() <= {tensor.name for tensor in traced.graph.initializer}:
                return clean_graph(traced, name)  # the exporter has merged or folded some: nothing to put others into
            self._traced[structure] = traced
        filled = onnx.ModelProto()
        filled.CopyFrom(self._traced[structure])
        for tensor in filled.graph.initializer:
            if tensor.name in weights:
                values = weights[tensor.name].detach().numpy()
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return clean_graph(filled, name)


TRACER = Tracer()
"""What this process has traced."""


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those included that no checkpoint holds."""
    return dict(chain(module.named_parameters(), module.named_buffers()))


def _trace(module: nn.Module, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    tensors: list[Tensor] = [torch.from_numpy(x) for x in inputs.values()]
    with _quiet():
        program = torch.onnx.export(
            for_onnx(module),
            tuple(tensors),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in tensors),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None only when the exporter writes a file itself
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about torchvision and its own internals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
