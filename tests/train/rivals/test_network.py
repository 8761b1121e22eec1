"""What all convolutional rivals hold to: the interface of IPT, its cost, its start, and layers that learn from it."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ipt_triton.tasks import OFFICIAL_TASKS, Task, TaskError
from ipt_triton.train.errors import ConfigError
from ipt_triton.train.model.ipt import IPT, PRESETS, preset
from ipt_triton.train.model.start import identity_start
from ipt_triton.train.rivals.edsr import EDSRConfig
from ipt_triton.train.rivals.ignn import IGNNConfig
from ipt_triton.train.rivals.network import Rival, RivalConfig
from ipt_triton.train.rivals.presets import NETWORKS, RIVAL_PRESETS, untrained
from ipt_triton.train.rivals.rdn import RDNConfig

SMALL = (
    EDSRConfig(features=6, blocks=2, residual_scale=0.5),
    RDNConfig(features=6, blocks=2, layers=2, growth=4),
    IGNNConfig(features=6, blocks=3, residual_scale=0.5, neighbours=2),
)
each_rival = pytest.mark.parametrize("config", SMALL, ids=lambda c: type(c).__name__)


def random_rival(config: RivalConfig) -> Rival:
    torch.manual_seed(0)
    return NETWORKS[type(config)](config).eval()


@each_rival
@pytest.mark.parametrize("task", OFFICIAL_TASKS, ids=lambda t: t.name)
@pytest.mark.parametrize(("height", "width"), [(48, 48), (7, 13), (1, 2)])
def test_patches_of_any_size_grow_by_the_scale(config: RivalConfig, task: Task, height: int, width: int):
    restored = random_rival(config)(torch.rand(2, 3, height, width) * 255, task.id)
    assert restored.shape == (2, 3, height * task.scale, width * task.scale)
    assert torch.isfinite(restored).all()


@pytest.mark.parametrize("name", RIVAL_PRESETS)
def test_presets_cost_as_much_as_ipts(name: str):
    _, dash, size = name.partition("-")
    costs = []
    with torch.device("meta"):  # shapes alone; on the CPU attention would not be counted
        for model in (untrained(RIVAL_PRESETS[name]), IPT(preset(f"ipt{dash}{size}"))):
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, 3, 48, 48), "denoise_30")
            costs.append(counter.get_total_flops())
    assert costs[0] == pytest.approx(costs[1], rel=0.04)


def test_there_is_each_rival_in_each_size():
    networks = ("edsr", "rdn", "ignn")
    assert set(RIVAL_PRESETS) == {size.replace("ipt", network) for size in PRESETS for network in networks}


@each_rival
@pytest.mark.parametrize("task", [t.name for t in OFFICIAL_TASKS])
def test_it_starts_where_ipt_starts(config: RivalConfig, task: str):
    patches = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        started = untrained(config)(patches, task)
        torch.testing.assert_close(started, identity_start(IPT(preset("ipt-tiny")))(patches, task), rtol=0, atol=0.01)
    assert started.std() > 20


@each_rival
def test_every_layer_learns_from_that_start(config: RivalConfig):
    """The layers before the zero one from the second step on."""
    torch.manual_seed(0)
    model = untrained(config).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    patches = torch.rand(2, 3, 16, 16) * 255
    for _ in range(2):
        optimiser.zero_grad()
        (model(patches, "derain") - 100).abs().mean().backward()
        optimiser.step()
    for name, parameter in model.body.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@each_rival
def test_a_flat_picture_has_finite_gradients(config: RivalConfig):
    model = random_rival(config).train()
    model(torch.full((2, 3, 16, 16), 200.0), "denoise_50").mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@each_rival
def test_one_task_trains_its_head_its_tail_and_the_body_alone(config: RivalConfig):
    model = random_rival(config).train()
    model(torch.rand(1, 3, 16, 16) * 255, "derain").mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    own = ("heads.derain.", "tails.derain.", "body.")
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(own)}


@each_rival
def test_a_configuration_survives_json(config: RivalConfig):
    values = json.loads(json.dumps(config.to_dict()))
    assert type(config)(**{**values, "tasks": tuple(Task(**t) for t in values["tasks"])}) == config


@each_rival
def test_unknown_tasks_and_impossible_sizes_are_named(config: RivalConfig):
    with pytest.raises(TaskError, match="unknown task 'sharpen'"):
        random_rival(config)(torch.zeros(1, 3, 8, 8), "sharpen")
    with pytest.raises(ConfigError, match="features 0 is not a whole number from 1 to 1024"):
        type(config)(features=0)
    with pytest.raises(ConfigError, match=r"blocks 1\.5 is not"):
        type(config)(blocks=1.5)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (RDNConfig, {"layers": 0}, "layers 0 is not a whole number from 1 to 64"),
        (RDNConfig, {"growth": 0}, "growth 0 is not a whole number from 1 to 1024"),
        (IGNNConfig, {"neighbours": 0}, "neighbours 0 is not a whole number from 1 to 1024"),
    ],
)
def test_a_rivals_own_sizes_are_checked(kind: type[RivalConfig], change: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        kind(**change)
