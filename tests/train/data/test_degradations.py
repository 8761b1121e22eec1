"""Degradations: the filter of MATLAB's imresize, noise with the statistics it says, rain that looks like rain."""

from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Generator, Tensor

from ipt_triton.images import PHOTOS
from ipt_triton.tasks import KNOWN_TASKS, Task, TaskError, find_task
from ipt_triton.train.data.degradations import DEGRADATIONS, MARGINS, degrade, degrade_image, training_pair
from ipt_triton.train.data.jpeg import compress

DEBLUR = Task(12, "deblur", "deblur", sigma=1.6)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def task(name: str) -> Task:
    return find_task((*KNOWN_TASKS, DEBLUR), name)


def photographs(count: int, side: int) -> Tensor:
    """Whole grey levels with both smooth parts and hard edges."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = torch.stack([128 + 90 * torch.sin(x / (5 + c) + 0.3 * c) * torch.cos(y / 9.0) for c in range(3)])
    batch = waves.repeat(count, 1, 1, 1) + torch.rand(count, 3, 1, 1, generator=generator(3)) * 20
    batch[..., side // 3 : side // 2, side // 4 : side // 2] = 240.0
    return batch.clamp(0, 255).round()


def matlab_imresize(image: np.ndarray, scale: int) -> np.ndarray:
    """One channel [H, W] made 1/scale the size, as MATLAB documents `imresize(…, 'bicubic')`; not rounded.

    Each output sample is a weighted sum under Keys' kernel (a = -0.5) stretched by the scale, weights normalised,
    pixels outside mirrored at the edge.
    """

    def keys(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    def along_rows(values: np.ndarray) -> np.ndarray:
        size = values.shape[0]
        rows = []
        for out in range(size // scale):
            centre = (out + 0.5) * scale - 0.5
            taps = range(math.floor(centre - 2 * scale), math.ceil(centre + 2 * scale) + 1)
            weights = [keys((tap - centre) / scale) for tap in taps]
            mirrored = [-1 - tap if tap < 0 else 2 * size - 1 - tap if tap >= size else tap for tap in taps]
            rows.append(sum(w * values[m] for w, m in zip(weights, mirrored, strict=True)) / sum(weights))
        return np.stack(rows)

    return along_rows(along_rows(image.astype(np.float64)).T).T


@pytest.mark.parametrize("name", ["sr_x2", "sr_x3", "sr_x4"])
def test_super_resolution_inputs_are_those_of_matlabs_bicubic(name: str) -> None:
    scale = task(name).scale
    clean = photographs(1, 48 * scale)
    small = degrade(clean, task(name), generator())
    assert small.shape == (1, 3, 48, 48)
    assert torch.equal(small, small.clamp(0, 255).round())
    for channel in range(3):
        expected = matlab_imresize(clean[0, channel].numpy(), scale)
        difference = np.abs(small[0, channel].numpy() - expected.clip(0, 255))
        assert difference[3:-3, 3:-3].max() <= 0.5 + 1e-3  # the rounding alone
        assert difference.max() <= 8  # at the edges torch leaves out what MATLAB mirrors


def test_bicubic_is_antialiased() -> None:
    stripes = torch.zeros(1, 3, 96, 96)
    stripes[..., ::2] = 255.0
    small = degrade(stripes, task("sr_x4"), generator())
    assert small[..., 4:-4].std() < 2 and abs(small.mean() - 127.5) < 2


@pytest.mark.parametrize("name", ["denoise_30", "denoise_50"])
def test_noise_is_white_and_gaussian_with_the_sigma_of_its_task(name: str) -> None:
    sigma = task(name).sigma
    clean = photographs(6, 128)
    noisy = degrade(clean, task(name), generator())
    noise = (noisy - clean)[1::2].double()  # the samples that stay float
    assert noise.std().item() == pytest.approx(sigma, rel=0.01)
    assert abs(noise.mean().item()) < 4 * sigma / math.sqrt(noise.numel())
    assert ((noise / sigma) ** 4).mean().item() == pytest.approx(3, rel=0.05)
    for shifted in (noise.roll(1, -1), noise.roll(1, -2), noise.roll(1, 1), noise.roll(1, 0)):
        assert abs((noise * shifted).mean().item()) < 0.01 * sigma**2


def test_every_second_noisy_sample_is_what_an_8_bit_file_holds() -> None:
    clean = torch.full((4, 3, 64, 64), 10.0)
    noisy = degrade(clean, task("denoise_50"), generator())
    assert torch.equal(noisy[::2], noisy[::2].clamp(0, 255).round()) and noisy[::2].min() == 0
    assert noisy[1::2].min() < -50 and not torch.equal(noisy[1::2], noisy[1::2].round())
    assert torch.equal(clean, torch.full_like(clean, 10.0))  # the caller's pictures are left alone


def test_rain_only_brightens_and_is_grey() -> None:
    clean = torch.randint(0, 60, (16, 1, 96, 96), generator=generator(1)).float().expand(-1, 3, -1, -1)
    rainy = degrade(clean, task("derain"), generator())
    layer = rainy - clean
    assert layer.min() >= 0 and rainy.max() <= 255
    assert torch.equal(rainy, rainy.round())
    free = (rainy < 255).all(dim=1, keepdim=True)
    assert (layer.amax(1, keepdim=True) - layer.amin(1, keepdim=True))[free].max() == 0
    assert free.float().mean() > 0.9


def test_most_rain_is_as_dense_and_as_bright_as_that_of_rain100l_and_some_is_heavier() -> None:
    """Its pictures: mean 1.9 to 5.2 grey levels, 3 to 11 % of the pixels above 16, PSNR 26 to 32 dB (three of them)."""
    layer = degrade(torch.zeros(64, 3, 96, 96), task("derain"), generator())[:, 0]
    mean, bright = layer.flatten(1).mean(1), (layer > 16).flatten(1).float().mean(1)
    loss = 10 * torch.log10(255**2 / layer.square().flatten(1).mean(1))
    assert 2 < mean.median() < 8 and 0.03 < bright.median() < 0.15 and 23 < loss.median() < 31
    assert mean.min() < 1 and loss.max() > 38  # drizzle
    assert 15 < mean.max() < 40 and loss.min() > 13  # heavy rain


def test_rain_falls_in_streaks_nearer_to_the_vertical() -> None:
    layer = degrade(torch.zeros(32, 3, 96, 96), task("derain"), generator())[:, 0]
    layer = layer - layer.mean((1, 2), keepdim=True)
    down, across = ((layer * layer.roll(6, dimension)).mean() / layer.square().mean() for dimension in (1, 2))
    assert down > 0.3 and across < 0.5 * down


def to_batch(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("quality", [10, 40, 75, 95])
@pytest.mark.parametrize("size", [(160, 208), (101, 51)])
def test_jpeg_loses_what_a_jpeg_file_loses(quality: int, size: tuple[int, int]) -> None:
    with Image.open(PHOTOS / "dog.png") as photo:
        image = photo.convert("RGB").crop((100, 60, 100 + size[0], 60 + size[1]))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    clean, expected = to_batch(np.asarray(image)), to_batch(np.asarray(Image.open(file)))
    coded = compress(clean, quality)
    assert torch.equal(coded, coded.clamp(0, 255).round())
    assert (coded - expected).abs().mean() < 1
    lost, should = (10 * torch.log10(255**2 / (x - clean).square().mean()).item() for x in (coded, expected))
    assert lost == pytest.approx(should, abs=0.15)


def test_the_blocks_of_jpeg_lie_anywhere_in_the_crop() -> None:
    """In a flat picture with one bright row, JPEG's ringing ends at the borders of the blocks."""
    clean = torch.full((1, 3, 48, 48), 128.0)
    clean[..., 24, :] = 200.0
    extents = Counter()
    for seed in range(100):
        coded = degrade(clean, Task(6, "dejpeg_40", "dejpeg", quality=40), generator(seed))
        changed = (coded - 128).abs().amax((0, 1, 3)).nonzero().flatten()
        extents[changed.min().item(), changed.max().item()] += 1
    assert len(extents) >= 5 and all(last - first < 8 for first, last in extents)
    assert sum(n for (first, _), n in extents.items() if first == 24) >= 60  # as in tiles of a whole file


def test_blur_is_that_of_a_gaussian_filter() -> None:
    clean = photographs(2, 96)
    blurred = degrade(clean, task("deblur"), generator())
    for sample in range(2):
        for channel in range(3):
            exact = gaussian_filter(clean[sample, channel].double().numpy(), 1.6, mode="reflect", truncate=4.375)
            assert np.abs(blurred[sample, channel].numpy() - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("one", (*KNOWN_TASKS, DEBLUR), ids=lambda t: t.name)
def test_a_generator_alone_decides_the_degradation(one: Task) -> None:
    clean = photographs(2, 48 * one.scale)
    torch.manual_seed(1)
    first = degrade(clean, one, generator(5))
    torch.manual_seed(2)
    assert torch.equal(degrade(clean, one, generator(5)), first)
    assert torch.equal(degrade(clean, one, generator(6)), first) is (one.kind in ("sr", "deblur"))
    assert first.shape == (2, 3, 48, 48)


def test_a_kind_without_a_degradation_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DEGRADATIONS, "derain")
    with pytest.raises(TaskError, match="task derain: no degradation of kind 'derain'; there are: sr, denoise"):
        degrade(torch.zeros(1, 3, 48, 48), task("derain"), generator())


@pytest.mark.parametrize("name", ["sr_x2", "sr_x3", "sr_x4"])
def test_a_reduced_crop_is_right_to_its_edge(name: str) -> None:
    """It is a piece of the reduced photograph, since its surroundings were there when it was made."""
    one = task(name)
    photo = photographs(1, 100 * one.scale)
    first, last = 20 * one.scale, (20 + 48 + 2 * MARGINS["sr"]) * one.scale
    small, clean = training_pair(photo[..., first:last, first:last], one, generator())
    inner = slice(20 + MARGINS["sr"], 20 + MARGINS["sr"] + 48)
    assert torch.equal(small, degrade(photo, one, generator())[..., inner, inner])
    places = slice(inner.start * one.scale, inner.stop * one.scale)
    assert torch.equal(clean, photo[..., places, places])


def strengths(noisy: Tensor, clean: Tensor) -> Tensor:
    """σ of the noise of each sample."""
    return (noisy - clean).flatten(1).std(1)


def test_noise_for_weights_has_all_strengths_up_to_the_nominal_one() -> None:
    clean = torch.full((400, 3, 24, 24), 128.0)
    noisy, _ = training_pair(clean, task("denoise_50"), generator(), ranged=True)
    sigmas = strengths(noisy, clean)
    nominal = sigmas > 46
    assert 0.4 < nominal.float().mean() < 0.65
    weaker = sigmas[~nominal]
    assert weaker.min() < 2 and weaker.mean().item() == pytest.approx(24, abs=3)
    exact, _ = training_pair(clean, task("denoise_50"), generator())
    assert strengths(exact, clean).min() > 45


def test_blind_noise_is_of_all_strengths_and_half_of_it_grows_with_the_light() -> None:
    levels = torch.linspace(40, 200, 2)
    clean = levels.repeat_interleave(24).expand(600, 3, 24, 48).clone()
    noisy, _ = training_pair(clean, task("denoise"), generator())
    dark, bright = (noisy - clean)[..., :24].flatten(1).std(1), (noisy - clean)[..., 24:].flatten(1).std(1)
    overall = (dark.square() + bright.square()).div(2).sqrt()
    assert overall.min() < 1 and 50 < overall.max() < 62
    assert 0.2 < (overall < 5).float().mean() < 0.4
    middle = (overall > 5) & (overall < 30)
    grows = bright[middle] / dark[middle]
    assert 0.3 < (grows > 1.15).float().mean() < 0.6 and grows.max() > 1.8


def test_blind_jpeg_has_every_quality() -> None:
    clean = photographs(64, 48)
    coded = degrade(clean, task("dejpeg"), generator())
    loss = (coded - clean).square().flatten(1).mean(1)
    assert loss.max() > 20 * loss.min()
    middle = degrade(clean, Task(6, "dejpeg_31", "dejpeg", quality=31), generator())
    worse = loss > (middle - clean).square().flatten(1).mean(1)
    assert 0.35 < worse.float().mean() < 0.65


def test_each_sample_goes_through_a_chain_of_its_own_and_keeps_its_place() -> None:
    """A picture with one bright spot has its centre of light where it was, whatever was done to it."""
    for name in ("real", "real_x2", "real_x4"):
        one = task(name)
        side = 96 * one.scale
        clean = torch.zeros(24, 3, side, side)
        spot = slice(40 * one.scale, 48 * one.scale)
        clean[..., spot, spot] = 250.0
        degraded = degrade(clean, one, generator(2))
        assert degraded.shape == (24, 3, 96, 96)
        assert torch.equal(degraded, degraded.clamp(0, 255).round())
        light = (degraded.mean(1) - 60).clamp(min=0)
        for dimension in (1, 2):
            profile = light.sum(3 - dimension)
            centre = (profile * torch.arange(96)).sum(1) / profile.sum(1)
            assert (centre - 43.5).abs().max() < 0.35, name
        flat = degraded.flatten(1)
        assert len({tuple(row.tolist()) for row in flat}) == 24


def test_what_needs_nothing_is_among_the_inputs_of_auto() -> None:
    clean = photographs(200, 32)
    degraded = degrade(clean, task("auto"), generator())
    untouched = (degraded == clean).flatten(1).all(1).float().mean().item()
    assert untouched == pytest.approx(0.15, abs=0.08)


def test_heavy_rain_falls_in_many_directions_and_some_of_it_in_mist() -> None:
    layer = degrade(torch.zeros(96, 3, 96, 96), task("derain"), generator())[:, 0]
    dry = layer[layer.flatten(1).median(1).values == 0]
    assert 0.4 < len(dry) / 96 < 0.9  # where there is mist, most of the picture is brighter
    dry = dry - dry.mean((1, 2), keepdim=True)
    power = dry.square().mean((1, 2))
    right, left = ((dry * dry.roll((4, s * 4), (1, 2))).mean((1, 2)) / power for s in (1, -1))
    assert ((right > 0.3) & (left < 0.2)).any() and ((left > 0.3) & (right < 0.2)).any()  # about 45° to both sides


@pytest.mark.parametrize("name", ["denoise", "dejpeg", "real", "real_x2", "auto", "derain"])
def test_whole_photographs_are_degraded_by_their_seed(name: str) -> None:
    one = task(name)
    photo = photographs(1, 80)[0].permute(1, 2, 0).byte().numpy()
    degraded = [degrade_image(photo, one, seed) for seed in (1, 1, 2)]
    assert degraded[0].shape == (80 // one.scale, 80 // one.scale, 3)
    assert np.array_equal(degraded[0], degraded[1]) and not np.array_equal(degraded[0], degraded[2])
