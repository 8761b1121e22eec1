"""Tracing once for each structure: the graphs are those that tracing each module would give."""

import numpy as np
import pytest
import torch
from torch import nn

from ipt_triton.export.parts.tracing import Tracer
from ipt_triton.train.model.ipt import IPT, IPTConfig

CONFIG = IPTConfig(features=8, encoder_layers=1, decoder_layers=1, heads=2)
MODEL = IPT(CONFIG).eval()
IMAGE = np.random.default_rng(0).uniform(0, 255, (2, 3, 48, 48)).astype(np.float32)
FEATURES = np.zeros((2, 8, 48, 48), np.float32)
HEAD = ({"IMAGE": IMAGE}, ["FEATURES", "TASK_EMBEDDING"])
TAIL = ({"BODY_FEATURES": FEATURES}, ["RESTORED"])
BODY = (
    {"FEATURES": FEATURES, "TASK_EMBEDDING": np.zeros((2, CONFIG.tokens, CONFIG.width), np.float32)},
    ["BODY_FEATURES"],
)


def traced_alone(module: nn.Module, part: tuple, name: str) -> bytes:
    return Tracer().graph(module, *part, name).SerializeToString()


@pytest.fixture(scope="module")
def tracer() -> Tracer:
    """One that has traced each kind of part before, of another model."""
    tracer, other = Tracer(), IPT(CONFIG).eval()
    for module, part in ((other.heads["sr_x2"], HEAD), (other.body, BODY), (other.tails["derain"], TAIL)):
        tracer.graph(module, *part, "first")
    return tracer


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (MODEL.heads["derain"], HEAD),
        (MODEL.body, BODY),
        (MODEL.tails["denoise_30"], TAIL),
        (MODEL.tails["sr_x3"], TAIL),
    ],
    ids=["a head", "a body", "a tail of the same scale", "a tail of another scale"],
)
def test_a_graph_is_byte_for_byte_what_tracing_the_module_alone_gives(tracer: Tracer, module: nn.Module, part: tuple):
    assert tracer.graph(module, *part, "part").SerializeToString() == traced_alone(module, part, "part")


def test_layers_of_one_shape_that_do_other_things_are_told_apart(tracer: Tracer):
    class Other(nn.Module):
        def __init__(self, dilation: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=dilation, dilation=dilation)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    one, two = (tracer.graph(Other(dilation), {"x": IMAGE}, ["y"], "other") for dilation in (1, 2))
    dilations = [list(a.ints) for graph in (one, two) for a in graph.graph.node[0].attribute if a.name == "dilations"]
    assert dilations == [[1, 1], [2, 2]]


def test_weights_that_are_equal_in_the_first_module_and_not_in_the_second_stay_apart(tracer: Tracer):
    zeros = IPT(CONFIG).eval()
    with torch.no_grad():
        for parameter in zeros.heads["sr_x2"].parameters():
            parameter.zero_()
    fresh = Tracer()
    fresh.graph(zeros.heads["sr_x2"], *HEAD, "zeros")
    head = MODEL.heads["sr_x4"]
    assert fresh.graph(head, *HEAD, "part").SerializeToString() == traced_alone(head, HEAD, "part")
