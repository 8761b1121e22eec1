"""The convolutional rival: EDSR's computation, behind the interface of IPT and at its cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ipt_triton.tasks import OFFICIAL_TASKS, Task, TaskError
from ipt_triton.train.errors import ConfigError
from ipt_triton.train.model.ipt import IPT, RGB_MEAN, preset
from ipt_triton.train.model.start import identity_start
from ipt_triton.train.rivals.edsr import CNN_PRESETS, EDSR, EDSRConfig, bicubic_start

SMALL = EDSRConfig(features=6, blocks=2, residual_scale=0.5)


def small_edsr() -> EDSR:
    torch.manual_seed(0)
    return EDSR(SMALL).eval()


@pytest.mark.parametrize("task", OFFICIAL_TASKS, ids=lambda t: t.name)
@pytest.mark.parametrize(("height", "width"), [(48, 48), (7, 13)])
def test_patches_of_any_size_grow_by_the_scale(task: Task, height: int, width: int):
    restored = small_edsr()(torch.rand(2, 3, height, width) * 255, task.id)
    assert restored.shape == (2, 3, height * task.scale, width * task.scale)


def official_edsr(weights: dict[str, Tensor], task: str, x: Tensor) -> Tensor:
    """EDSR x2 in the words of its repository (model/edsr.py, model/common.py): sub_mean, head, body, tail, add_mean."""

    def conv(name: str, y: Tensor) -> Tensor:
        return F.conv2d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    mean = torch.tensor(RGB_MEAN).view(3, 1, 1) * 255
    x = conv(f"heads.{task}", x - mean)
    res = x
    for i in range(SMALL.blocks):
        res = res + conv(f"body.{i}.conv2", conv(f"body.{i}.conv1", res).relu()) * SMALL.residual_scale
    res = conv(f"body.{SMALL.blocks}", res) + x
    res = nn.PixelShuffle(2)(conv(f"tails.{task}.steps.0", res))
    return conv(f"tails.{task}.conv", res) + mean


def test_it_computes_what_edsr_computes():
    model, patches = small_edsr(), torch.rand(2, 3, 20, 24) * 255
    with torch.no_grad():
        torch.testing.assert_close(model(patches, "sr_x2"), official_edsr(model.state_dict(), "sr_x2", patches))


def test_edsr_baseline_has_the_published_number_of_parameters():
    one = EDSR(EDSRConfig(tasks=OFFICIAL_TASKS[:1]))
    assert sum(p.numel() for p in one.parameters()) == 1_369_859  # 1.37 M; the two mean shifts hold 24 numbers more


@pytest.mark.parametrize(("cnn", "ipt"), [("edsr-tiny", "ipt-tiny"), ("edsr-small", "ipt-small"), ("edsr", "ipt")])
def test_presets_cost_as_much_as_ipts(cnn: str, ipt: str):
    costs = []
    with torch.device("meta"):  # shapes alone; on the CPU attention would not be counted
        for model in (EDSR(CNN_PRESETS[cnn]), IPT(preset(ipt))):
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, 3, 48, 48), "denoise_30")
            costs.append(counter.get_total_flops())
    assert costs[0] == pytest.approx(costs[1], rel=0.04)


@pytest.mark.parametrize("task", [t.name for t in OFFICIAL_TASKS])
def test_it_starts_where_ipt_starts(task: str):
    patches = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        started = bicubic_start(small_edsr())(patches, task)
        torch.testing.assert_close(started, identity_start(IPT(preset("ipt-tiny")))(patches, task), rtol=0, atol=0.01)
    assert started.std() > 20


def test_every_layer_learns_from_that_start():
    """The layers before the zero one from the second step on."""
    model = bicubic_start(small_edsr().train())
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    patches = torch.rand(2, 3, 16, 16) * 255
    for _ in range(2):
        optimiser.zero_grad()
        (model(patches, "derain") - 100).abs().mean().backward()
        optimiser.step()
    for name, parameter in model.body.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_one_task_trains_its_head_its_tail_and_the_body_alone():
    model = small_edsr().train()
    model(torch.rand(1, 3, 16, 16) * 255, "derain").mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    own = ("heads.derain.", "tails.derain.", "body.")
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(own)}


def test_unknown_tasks_and_impossible_sizes_are_named():
    with pytest.raises(TaskError, match="unknown task 'sharpen'"):
        small_edsr()(torch.zeros(1, 3, 8, 8), "sharpen")
    with pytest.raises(ConfigError, match="features 0 is not a whole number from 1 to 1024"):
        EDSRConfig(features=0)
    with pytest.raises(ConfigError, match=r"blocks 1\.5 is not"):
        EDSRConfig(blocks=1.5)  # type: ignore[arg-type]
