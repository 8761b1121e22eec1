"""Degradations: the filter of MATLAB's imresize, noise with the statistics it says, rain that looks like rain."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Generator, Tensor

from ipt_triton.images import PHOTOS
from ipt_triton.tasks import OFFICIAL_TASKS, OPTIONAL_TASKS, Task, TaskError, find_task
from ipt_triton.train.data.degradations import DEGRADATIONS, degrade
from ipt_triton.train.data.jpeg import compress


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def task(name: str) -> Task:
    return find_task((*OFFICIAL_TASKS, *OPTIONAL_TASKS), name)


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
    clean = torch.randint(0, 60, (16, 3, 96, 96), generator=generator(1)).float()
    rainy = degrade(clean, task("derain"), generator())
    layer = rainy - clean
    assert layer.min() >= 0 and rainy.max() <= 255
    assert torch.equal(rainy, rainy.round())
    free = (rainy < 255).all(dim=1, keepdim=True)
    assert (layer.amax(1, keepdim=True) - layer.amin(1, keepdim=True))[free].max() == 0
    assert free.float().mean() > 0.9


def test_rain_is_as_dense_and_as_bright_as_that_of_rain100l() -> None:
    """Its pictures: mean 1.9 to 5.2 grey levels, 3 to 11 % of the pixels above 16, PSNR 26 to 32 dB (three of them)."""
    layer = degrade(torch.zeros(64, 3, 96, 96), task("derain"), generator())[:, 0]
    mean = layer.flatten(1).mean(1)
    assert 2 < mean.mean() < 8
    assert mean.min() > 0.1 and mean.max() < 25 and mean.std() > 1  # light and heavy rain
    assert 0.03 < (layer > 16).float().mean() < 0.15
    assert 25 < (10 * torch.log10(255**2 / layer.square().flatten(1).mean(1))).mean() < 30


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
    extents = set()
    for seed in range(40):
        coded = degrade(clean, task("dejpeg_40"), generator(seed))
        changed = (coded - 128).abs().amax((0, 1, 3)).nonzero().flatten()
        extents.add((changed.min().item(), changed.max().item()))
    assert len(extents) >= 5 and all(last - first < 8 for first, last in extents)


def test_blur_is_that_of_a_gaussian_filter() -> None:
    clean = photographs(2, 96)
    blurred = degrade(clean, task("deblur"), generator())
    for sample in range(2):
        for channel in range(3):
            exact = gaussian_filter(clean[sample, channel].double().numpy(), 1.6, mode="reflect", truncate=4.375)
            assert np.abs(blurred[sample, channel].numpy() - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("one", (*OFFICIAL_TASKS, *OPTIONAL_TASKS), ids=lambda t: t.name)
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
