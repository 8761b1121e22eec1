"""The model: parity with an independent restatement of the official code, mixed tasks, identity start, options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.official_reference import SCALES, OfficialIPT
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ipt_triton.tasks import OFFICIAL_TASKS, Task, TaskError
from ipt_triton.train.model.import_official import convert
from ipt_triton.train.model.ipt import (
    IPT,
    POSITIONS,
    PRESETS,
    Attention,
    ConfigError,
    IPTConfig,
    RelativeAttention,
    preset,
    sincos_positions,
)
from ipt_triton.train.model.onnx import ExplicitAttention, for_onnx
from ipt_triton.train.model.start import identity_start

NAMES = [t.name for t in OFFICIAL_TASKS]
SMALL = IPTConfig(features=8, encoder_layers=1, decoder_layers=1, heads=2)


pytestmark = pytest.mark.usefixtures("repeatable")  # threads that wait for a busy core make small products slow


def patches(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Whole grey levels, so that float32 and float64 hold the same."""
    return torch.randint(0, 256, (count, 3, 48, 48), generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(name: str, scales: tuple[int, ...]) -> OfficialIPT:
    c = PRESETS[name]
    return OfficialIPT(c.features, c.encoder_layers, c.decoder_layers, c.heads, scales, seed=len(scales))


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("ipt-tiny", NAMES),
        ("ipt-tiny", ["denoise_50"]),
        pytest.param("ipt-small", NAMES, marks=pytest.mark.slow),
        pytest.param("ipt", ["sr_x3"], marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_every_preset_computes_what_the_official_code_computes(name: str, tasks: list[str]) -> None:
    official = reference(name, tuple(SCALES[NAMES.index(t)] for t in tasks))
    model = convert(official.state_dict(), tasks, PRESETS[name].heads)
    assert model.config == preset(name, [OFFICIAL_TASKS[NAMES.index(t)] for t in tasks])
    official.double(), model.double()
    for index, task in enumerate(tasks):
        x = patches(2 if name == "ipt-tiny" else 1, seed=index, dtype=torch.float64)
        torch.testing.assert_close(model(x, task), official(x, index), rtol=0, atol=1e-6)


@torch.no_grad()
def test_float32_stays_within_a_thousandth_of_a_grey_level_of_the_official_code() -> None:
    official = OfficialIPT(8, 2, 2, 3)
    model = convert(official.state_dict(), heads=3)
    for index, task in enumerate(NAMES):
        torch.testing.assert_close(model(patches(4), task), official(patches(4), index), rtol=0, atol=1e-3)


@torch.no_grad()
def test_parity_notices_another_number_of_attention_heads() -> None:
    official = OfficialIPT(8, 2, 2, 3, scales=(1,))
    model = convert(official.state_dict(), ["derain"], heads=6).double()
    x = patches(1, dtype=torch.float64)
    assert (model(x, "derain") - official.double()(x, 0)).abs().max() > 1e-3


@torch.no_grad()
def test_a_batch_of_mixed_tasks_gives_each_sample_what_its_own_task_gives() -> None:
    torch.manual_seed(0)
    model = IPT(SMALL).double().eval()
    tasks = ["denoise_50", "sr_x2", 3, "sr_x4", "sr_x2", 5, "sr_x3"]
    x = patches(len(tasks), dtype=torch.float64)
    for row, (task, restored) in enumerate(zip(tasks, model.forward_mixed(x, tasks), strict=True)):
        torch.testing.assert_close(restored, model(x[row : row + 1], task)[0], rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_single_batch_of_the_body_serves_two_tasks() -> None:
    torch.manual_seed(0)
    model = IPT(SMALL).double().eval()
    x = patches(2, dtype=torch.float64)
    parts = [model.heads["derain"](x[:1]), model.heads["denoise_30"](x[1:])]
    together = model.body(*(torch.cat(p) for p in zip(*parts, strict=True)))
    torch.testing.assert_close(model.tails["derain"](together[:1]), model(x[:1], "derain"), rtol=0, atol=1e-9)
    torch.testing.assert_close(model.tails["denoise_30"](together[1:]), model(x[1:], 4), rtol=0, atol=1e-9)


def test_unknown_tasks_and_wrong_counts_are_named() -> None:
    model = IPT(SMALL)
    with pytest.raises(TaskError, match=r"'sharpen'.*sr_x2.*denoise_50"):
        model(patches(1), "sharpen")
    with pytest.raises(TaskError, match="1 tasks for 2 patches"):
        model.forward_mixed(patches(2), ["derain"])


@torch.no_grad()
def test_unfold_and_fold_are_those_of_torch() -> None:
    body = IPT(SMALL).body
    x = torch.randn(2, 8, 48, 48)
    tokens = body.unfold(x)
    assert torch.equal(tokens, F.unfold(x, 3, stride=3).transpose(1, 2))
    assert torch.equal(body.fold(tokens), x)


@pytest.mark.parametrize("name", ["ipt-tiny", "ipt-small"])
@torch.no_grad()
def test_identity_start_returns_the_input_for_tasks_of_scale_1(name: str) -> None:
    torch.manual_seed(0)
    model = identity_start(IPT(preset(name))).double().eval()
    for task in ("derain", "denoise_30", "denoise_50"):
        x = patches(2, dtype=torch.float64)
        assert torch.equal(model(x, task), x)
        torch.testing.assert_close(model.float()(x.float(), task), x.float(), rtol=0, atol=1e-4)
        model.double()


@pytest.mark.parametrize(("task", "tolerance"), [("sr_x2", 1e-3), ("sr_x3", 1e-3), ("sr_x4", 0.5)])
@torch.no_grad()
def test_identity_start_enlarges_as_the_bicubic_filter_does(task: str, tolerance: float) -> None:
    torch.manual_seed(0)
    model = identity_start(IPT(preset("ipt-tiny"))).eval()
    scale = model.task(task).scale
    x = F.interpolate(patches(4)[..., :24, :24], scale_factor=2, mode="bilinear")  # as smooth as a photograph
    expected = F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)
    inside = (..., slice(4 * scale, -4 * scale), slice(4 * scale, -4 * scale))
    torch.testing.assert_close(model(x, task)[inside], expected[inside], rtol=0, atol=tolerance)
    assert (model(x, task) - expected).abs().mean() < 3  # at the border, where the convolutions see zeros


@torch.no_grad()
def test_identity_start_holds_with_every_ablation() -> None:
    for position in POSITIONS:
        for task_embedding in (True, False):
            config = replace(SMALL, position=position, task_embedding=task_embedding)
            x = patches(2)
            assert (identity_start(IPT(config)).eval()(x, "derain") - x).abs().max() <= 1.0


@torch.no_grad()
def test_without_positions_tokens_may_be_permuted_and_with_them_not() -> None:
    torch.manual_seed(0)
    tokens, order = torch.randn(1, 256, 72), torch.randperm(256)
    for position in POSITIONS:
        body = IPT(replace(SMALL, position=position, task_embedding=False)).body.eval()
        for layer in body.modules():
            if isinstance(layer, RelativeAttention):
                layer.distances.normal_()
        nothing = torch.zeros(1, 256, 72)
        permuted = body.transform(tokens[:, order], nothing)
        equivariant = torch.allclose(permuted, body.transform(tokens, nothing)[:, order], atol=1e-4)
        assert equivariant is (position == "none"), position


@torch.no_grad()
def test_a_place_in_two_dimensions_is_the_vector_of_its_row_plus_that_of_its_column() -> None:
    body = IPT(replace(SMALL, position="learned_2d")).body
    assert body.position.shape == (2, 16, 72)
    places = body.places()
    for token in (0, 15, 16, 100, 255):
        torch.testing.assert_close(places[token], body.position[0, token // 16] + body.position[1, token % 16])


@torch.no_grad()
def test_relative_attention_adds_to_each_score_the_number_of_its_distance() -> None:
    torch.manual_seed(0)
    attention = RelativeAttention(8, 2, grid=3).double()
    attention.distances.normal_()
    query, memory = torch.randn(2, 9, 8).double(), torch.randn(2, 9, 8).double()
    to_q, to_k, to_v = attention.projection.view(3, 2, 4, 8)
    expected = torch.empty(2, 9, 8).double()
    for head in range(2):
        for i in range(9):
            scores = torch.stack(
                [
                    ((to_q[head] @ query[:, i].T) * (to_k[head] @ memory[:, j].T)).sum(0) / 2
                    + attention.distances[head, i // 3 - j // 3 + 2, i % 3 - j % 3 + 2]
                    for j in range(9)
                ]
            )  # [key, batch]
            values = to_v[head] @ memory.transpose(1, 2)  # [batch, 4, key]
            expected[:, i, 4 * head : 4 * head + 4] = torch.einsum("kb,bdk->bd", scores.softmax(0), values)
    torch.testing.assert_close(attention(query, memory, memory), attention.out(expected))


def test_only_the_published_places_are_a_table_for_each_token() -> None:
    shapes = {
        position: {n: tuple(t.shape) for n, t in IPT(replace(SMALL, position=position)).state_dict().items()}
        for position in POSITIONS
    }
    published = shapes["learned"].pop("body.position")
    assert published == (256, 72)
    assert shapes["learned"] == shapes["sincos"] == shapes["none"]
    distances = {n for n in shapes["relative"] if n.endswith("distances")}
    assert len(distances) == 3 and all(shapes["relative"][n] == (2, 31, 31) for n in distances)
    assert {n: s for n, s in shapes["relative"].items() if n not in distances} == shapes["learned"]


def test_places_of_every_kind_learn() -> None:
    torch.manual_seed(0)
    for position in ("learned", "learned_2d", "relative"):
        model = IPT(replace(SMALL, position=position))
        model(patches(1), "derain").mean().backward()
        own = [p for n, p in model.named_parameters() if n.endswith(("position", "distances"))]
        assert own and all(p.grad is not None and p.grad.abs().max() > 0 for p in own), position


@torch.no_grad()
def test_the_embedding_alone_tells_the_body_its_task() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 48, 48)
    model = IPT(SMALL).eval()
    one, two = (model.body(x, model.heads[t].embedding[None]) for t in ("derain", "denoise_50"))
    assert (one - two).abs().max() > 1e-3
    plain = IPT(replace(SMALL, task_embedding=False)).eval()
    assert not any("embedding" in name for name in plain.state_dict())
    assert torch.count_nonzero(plain.heads["derain"](patches(1))[1]) == 0


@torch.no_grad()
def test_the_form_for_onnx_computes_the_same_with_the_same_weights_and_leaves_the_module_alone() -> None:
    torch.manual_seed(0)
    body = IPT(SMALL).body.double()
    exported = for_onnx(body)
    x, embedding = torch.randn(2, 8, 48, 48).double(), torch.randn(2, 256, 72).double()
    torch.testing.assert_close(exported(x, embedding), body(x, embedding), rtol=0, atol=1e-9)
    assert all(ours is theirs for ours, theirs in zip(body.parameters(), exported.parameters(), strict=True))
    assert type(exported.decoder[0].cross_attention) is ExplicitAttention
    assert type(body.decoder[0].cross_attention) is Attention


def test_sincos_positions_are_the_table_of_the_paper() -> None:
    table = sincos_positions(256, 72).double()
    for token, column in ((0, 0), (1, 0), (1, 1), (100, 10), (255, 71)):
        angle = torch.tensor(token / 10000 ** (2 * (column // 2) / 72), dtype=torch.float64)
        expected = torch.sin(angle) if column % 2 == 0 else torch.cos(angle)
        assert table[token, column].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "tasks", "low", "high"),
    [
        *(("ipt", (task,), 115.25, 115.65) for task in OFFICIAL_TASKS),
        ("ipt", OFFICIAL_TASKS, 118.85, 118.95),
        ("ipt-small", OFFICIAL_TASKS, 1.0, 16.0),
        ("ipt-tiny", OFFICIAL_TASKS, 1.0, 2.1),
    ],
)
def test_presets_have_the_size_that_is_said(name: str, tasks: tuple[Task, ...], low: float, high: float) -> None:
    with torch.device("meta"):
        model = IPT(preset(name, tasks))
    assert low <= sum(p.numel() for p in model.parameters()) / 1e6 <= high


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_its_dictionary(name: str) -> None:
    config = replace(preset(name, OFFICIAL_TASKS[2:4]), position="none", task_embedding=False)
    assert IPTConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": 0}, "features 0"),
        ({"features": "64"}, "features '64'"),
        ({"encoder_layers": -1}, "encoder_layers -1"),
        ({"decoder_layers": 1.5}, "decoder_layers 1.5"),
        ({"patch_size": 50}, "patch_size 50 .* token_size 3"),
        ({"heads": 7}, "heads 7 .* width 576"),
        ({"position": "rotary"}, "'rotary'.*learned, learned_2d, relative, sincos, none"),
        ({"depth": 3, "width": 1}, "depth, width"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IPTConfig.from_dict({**IPTConfig().to_dict(), **change})


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'ipt-huge'.*ipt, ipt-small, ipt-tiny"):
        preset("ipt-huge")


def test_the_paper_size_model_takes_33_g_multiply_adds_a_patch() -> None:
    with torch.device("meta"):
        model = IPT(preset("ipt", OFFICIAL_TASKS[3:4]))
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 48, 48), "derain")
    assert counter.get_total_flops() / 2 == pytest.approx(33e9, rel=0.01)
