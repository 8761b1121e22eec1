"""PSNR and SSIM against figures computed by hand, scikit-image and a plain restatement."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.support import read_image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ipt_triton.metrics import luma, psnr, psnr_y, ssim, ssim_y, to_uint8

SKIMAGE = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


def pair(name: str = "kitten", sigma: float = 15) -> tuple[np.ndarray, np.ndarray]:
    """A photograph with noise, and itself."""
    clean = read_image(name)[:90, :121]
    noise = np.random.default_rng(0).normal(0, sigma, clean.shape)
    return (clean + noise).clip(0, 255).round().astype(np.uint8), clean


def test_psnr_of_a_known_difference():
    clean = np.full((20, 20, 3), 100, np.uint8)
    assert psnr(clean + np.uint8(5), clean) == pytest.approx(20 * math.log10(255 / 5))
    # Every channel 5 levels higher: luma rises by 5 · (65.481 + 128.553 + 24.966) / 255 = 5 · 219 / 255.
    assert psnr_y(clean + np.uint8(5), clean) == pytest.approx(20 * math.log10(255 / (5 * 219 / 255)))


def test_psnr_equals_that_of_scikit_image():
    restored, clean = pair()
    assert psnr(restored, clean) == pytest.approx(peak_signal_noise_ratio(clean, restored))
    inner = (slice(4, -4), slice(4, -4))
    expected = peak_signal_noise_ratio(
        rgb2ycbcr(clean)[..., 0][inner], rgb2ycbcr(restored)[..., 0][inner], data_range=255
    )
    assert psnr_y(restored, clean, border=4) == pytest.approx(expected)


def test_luma_runs_from_16_to_235():
    extremes = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    np.testing.assert_allclose(luma(extremes), [[16, 235]])


def test_border_leaves_out_what_differs_there():
    clean = read_image("dog")[:40, :40]
    restored = clean ^ np.uint8(1)
    framed = restored.copy()
    framed[:3], framed[-3:], framed[:, :3], framed[:, -3:] = 0, 0, 0, 0
    for measure in (psnr, psnr_y, ssim, ssim_y):
        assert measure(framed, clean, 3) == pytest.approx(measure(restored[3:-3, 3:-3], clean[3:-3, 3:-3]))


@pytest.mark.parametrize("name", ["kitten", "skyline", "torii"])
@pytest.mark.parametrize("sigma", [2, 15, 60])
def test_ssim_equals_scikit_images_gaussian_setting(name: str, sigma: float):
    restored, clean = pair(name, sigma)
    colour = structural_similarity(clean, restored, channel_axis=-1, **SKIMAGE)
    assert ssim(restored, clean) == pytest.approx(colour, abs=1e-6)
    grey = structural_similarity(luma(clean), luma(restored), **SKIMAGE)
    assert ssim_y(restored, clean) == pytest.approx(grey, abs=1e-6)


def test_ssim_of_one_window_is_the_formula_of_the_paper():
    restored, clean = (image[:11, :11, 0].astype(float) for image in pair())
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    mean_x, mean_y = (weights * restored).sum(), (weights * clean).sum()
    var_x, var_y = (weights * (restored - mean_x) ** 2).sum(), (weights * (clean - mean_y) ** 2).sum()
    cov = (weights * (restored - mean_x) * (clean - mean_y)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert ssim(restored, clean) == pytest.approx(expected)


def test_ssim_of_equal_images_is_one():
    clean = read_image("parrot")[:30, :30]
    assert ssim(clean, clean) == pytest.approx(1)


@pytest.mark.parametrize(
    ("restored", "clean", "border", "message"),
    [
        (np.zeros((20, 20, 3)), np.zeros((20, 21, 3)), 0, r"shapes \(20, 20, 3\) and \(20, 21, 3\) differ"),
        (np.zeros((6, 6, 3)), np.ones((6, 6, 3)), 3, r"image of shape \[6, 6, 3\] .*border of 3"),
    ],
)
def test_what_cannot_be_compared_is_an_error(restored: np.ndarray, clean: np.ndarray, border: int, message: str):
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match=message):
            measure(restored, clean, border)


def test_an_infinite_psnr_is_an_error():
    clean = read_image("parrot")[:30, :30]
    with pytest.raises(ValueError, match="the images are equal, so their PSNR is infinite"):
        psnr(clean, clean)


def test_ssim_needs_a_whole_window():
    image = np.zeros((18, 30, 3))
    with pytest.raises(ValueError, match=r"at least 11 pixels .* 10x22 are left within a border of 4"):
        ssim(image, image, 4)


def test_to_uint8_clips_and_rounds():
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 0.4, 0.6, 254.7, 300.0])), [0, 0, 1, 255, 255])
    image = np.arange(5, dtype=np.uint8)
    assert to_uint8(image) is image
