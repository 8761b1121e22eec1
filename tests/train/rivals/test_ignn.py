"""IGNN: retrieval and aggregation across scales are what loops over patches find, and examples reach the output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ipt_triton.train.rivals.ignn import IGNN, Graph, IGNNConfig, from_patches, retrieve, to_patches

CONFIG = IGNNConfig(features=4, blocks=2, neighbours=3)
SIZES = [(12, 12), (8, 14)]
each_size = pytest.mark.parametrize(("height", "width"), SIZES)


def features(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(seed)).double()


def patch(x: np.ndarray, row: int, column: int) -> np.ndarray:
    """The 3x3 around a place, pixels outside being those of the edge."""
    rows, columns = (np.clip(range(c - 1, c + 2), 0, n - 1) for c, n in ((row, x.shape[1]), (column, x.shape[2])))
    return x[:, rows][:, :, columns]


def larger_patch(x: np.ndarray, row: int, column: int) -> np.ndarray:
    """The 6x6 that the 3x3 around a place at half scale was reduced from."""
    half = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2)
    rows, columns = (np.clip(range(c - 1, c + 2), 0, n - 1) for c, n in ((row, half.shape[1]), (column, half.shape[3])))
    cells = half[:, rows][:, :, :, columns]  # [C, 3, 2, 3, 2]
    return cells.reshape(x.shape[0], 6, 6)


def places(height: int, width: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(0, height, 2) for column in range(0, width, 2)]


def nearest(shallow: np.ndarray, k: int) -> list[list[tuple[int, int]]]:
    """Of each query the places at half scale of its nearest patches, by trying all."""
    channels, height, width = shallow.shape
    half = shallow.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))
    candidates = places(height // 2, width // 2)
    found = []
    for row, column in places(height, width):
        query = patch(shallow, row, column)
        found.append(sorted(candidates, key=lambda n: float(((query - patch(half, *n)) ** 2).sum()))[:k])
    return found


@each_size
def test_retrieval_finds_what_trying_all_patches_finds(height: int, width: int):
    shallow = features(height, width)
    chosen, differences = retrieve(shallow, 3)
    candidates = places(height // 2, width // 2)
    for image in range(2):
        x = shallow[image].numpy()
        half = x.reshape(4, height // 2, 2, width // 2, 2).mean((2, 4))
        expected = nearest(x, 3)
        assert [[candidates[n] for n in row] for row in chosen[image].tolist()] == expected
        for q, (row, column) in enumerate(places(height, width)):
            for r, n in enumerate(expected[q]):
                apart = np.abs(patch(x, row, column) - patch(half, *n)).sum((1, 2))
                np.testing.assert_allclose(differences[image, q, r].numpy(), apart, atol=1e-9)


@each_size
@torch.no_grad()
def test_aggregation_is_the_equation_patch_by_patch(height: int, width: int):
    torch.manual_seed(0)
    graph, x, shallow = Graph(CONFIG).double(), features(height, width, 1), features(height, width, 2)
    f, e = x[1].numpy(), shallow[1].numpy()
    half = e.reshape(4, height // 2, 2, width // 2, 2).mean((2, 4))
    sums, counts = np.zeros((4, 2 * height, 2 * width)), np.zeros((2 * height, 2 * width))
    for (row, column), neighbours in zip(places(height, width), nearest(e, 3), strict=True):
        query = patch(f, row, column).reshape(4, 9)
        scores, examples = [], []
        for n in neighbours:
            apart = np.abs(patch(e, row, column) - patch(half, *n)).sum((1, 2))
            scores.append(graph.edge(torch.from_numpy(apart)).item())
            z = larger_patch(f, *n).reshape(4, 36)
            spread = np.sqrt((query.var(1, ddof=1) + 1) / (z.var(1, ddof=1) + 1))
            examples.append((z - z.mean(1, keepdims=True)) * spread[:, None] + query.mean(1, keepdims=True))
        weights = np.exp(scores) / np.exp(scores).sum()
        mixed = sum(w * z for w, z in zip(weights, examples, strict=True)).reshape(4, 6, 6)
        for i in range(6):
            for j in range(6):
                y, z = 2 * row - 2 + i, 2 * column - 2 + j
                if 0 <= y < 2 * height and 0 <= z < 2 * width:
                    sums[:, y, z] += mixed[:, i, j]
                    counts[y, z] += 1
    assert counts.min() >= 1
    np.testing.assert_allclose(graph.aggregate(x, shallow)[1].numpy(), sums / counts, atol=1e-9)


def test_patches_put_in_their_places_give_the_picture_back():
    x = features(16, 12)
    twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    small = to_patches(x).unflatten(3, (3, 3))
    patches = small.repeat_interleave(2, 3).repeat_interleave(2, 4).flatten(3)
    torch.testing.assert_close(from_patches(patches, 16, 12), twice)


def test_a_patch_that_is_somewhere_at_twice_the_size_is_found_there():
    """A shape of 6x6 and the same at 12x12: the larger one is the example of the smaller one's middle."""
    torch.manual_seed(0)
    shape = torch.rand(4, 6, 6) * 100
    picture = torch.zeros(1, 4, 32, 32)
    picture[0, :, 2:8, 2:8] = shape
    picture[0, :, 16:28, 16:28] = shape.repeat_interleave(2, 1).repeat_interleave(2, 2)
    chosen, differences = retrieve(picture, 1)
    query = places(32, 32).index((4, 4))  # the middle of the small shape starts at 3, 3: its 3x3 is rows 3 to 5
    assert places(16, 16)[chosen[0, query, 0]] == (10, 10)
    torch.testing.assert_close(differences[0, query, 0], torch.zeros(4), atol=1e-4, rtol=0)


def test_under_autocast_the_same_patches_are_found():
    """Features far from zero, so that distances are small beside the features themselves."""
    shallow = (100 + 5 * features(24, 24)).float().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        chosen, differences = retrieve(shallow, 3)
    expected, apart = retrieve(shallow.float(), 3)
    assert torch.equal(chosen, expected) and torch.equal(differences, apart)


@torch.no_grad()
def test_what_is_flat_stays_flat():
    torch.manual_seed(0)
    graph, flat = Graph(CONFIG), torch.full((1, 4, 12, 12), 77.0)
    torch.testing.assert_close(graph.aggregate(flat, features(12, 12)[:1].float()), torch.full((1, 4, 24, 24), 77.0))


@torch.no_grad()
def test_the_graph_brings_what_stands_far_away():
    """A change beyond the reach of all convolutions changes the output, and not without the graph's share in it."""
    torch.manual_seed(0)
    model = IGNN(IGNNConfig(features=4, blocks=0, neighbours=1024)).eval()  # all patches there are
    patches = torch.rand(1, 3, 48, 48) * 255
    changed = patches.clone()
    changed[..., 40:, 40:] = 0
    corner = (..., slice(0, 8), slice(0, 8))
    assert (model(patches, "derain")[corner] - model(changed, "derain")[corner]).abs().max() > 1e-3
    first = model.body[0].graph.fuse[0]
    first.weight[:, 4:] = 0  # what comes down from the graph
    torch.testing.assert_close(model(patches, "derain")[corner], model(changed, "derain")[corner])
