"""The cache keeps any shape of keys and values, forgets what is rejected, and drops sequences."""

import pytest
import torch

from specblock.target.cache import PathCache

# per layer: (heads, width) of keys and of values
SHAPES = {
    "alike": [((2, 8), (2, 8))] * 3,
    "wider keys": [((4, 12), (4, 8))] * 3,
    "latents": [((1, 16), (1, 4))] * 2,
    "several": [((2, 8), (2, 8)), ((1, 16), (1, 16)), ((4, 12), (4, 8)), ((2, 8), (2, 8))],
    "one that is left out": [((2, 8), (2, 8)), None, ((2, 8), (2, 8))],
}


def states(shapes, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for layer, pair in enumerate(shapes):
        if pair is not None:
            yield layer, [torch.randn(1, h, rows, w, generator=generator) for h, w in pair]


def filled(shapes, exact):
    """A cache of six positions, the last four in a forward of their own that is not committed."""
    cache, whole = PathCache(len(shapes), 10, exact), dict(states(shapes, 6))
    for layer, pair in whole.items():
        cache.update(*(x[:, :, :2] for x in pair), layer)
    cache.advance(2)
    for layer, pair in whole.items():
        cache.update(*(x[:, :, 2:] for x in pair), layer)
    return cache, whole


def content(cache, layer):
    kept = cache.layers[layer]
    values = kept.values[..., : kept.values.shape[-1] - cache.exact]
    return kept.keys[:, :, : cache.length], values[:, :, : cache.length]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_a_path_is_kept_in_every_layer(name, exact):
    cache, whole = filled(SHAPES[name], exact)
    cache.keep(torch.tensor([0, 2, 3]))
    assert cache.length == 5
    for layer, pair in whole.items():
        for ours, all_rows in zip(content(cache, layer), pair, strict=True):
            assert ours.equal(all_rows[:, :, [0, 1, 2, 4, 5]])
        if exact:
            assert (cache.layers[layer].values[..., -1] == 1).all()
