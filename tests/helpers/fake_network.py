"""A stand-in for the network: numpy only; used by the tests and, copied, by fake_restore_model.py inside Triton."""

import numpy as np


def enlarge(patches, scale):
    """Repeat every pixel of float [n, 3, 48, 48]: the identity at scale 1."""
    return patches.repeat(scale, 2).repeat(scale, 3)


def stamp(patches, scale):
    """Depends on where in its tile a pixel lies and on the whole tile, so a result tells which tiles it was made of."""
    ramp = np.linspace(0, 1, 48 * 48, dtype=np.float32).reshape(48, 48)
    mean = patches.mean(axis=(1, 2, 3), keepdims=True)
    return enlarge(patches * (0.5 + 0.5 * ramp) + mean * 0.3 * ramp.T, scale)
