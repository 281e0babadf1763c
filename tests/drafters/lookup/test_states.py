"""Keys of hidden states: angles survive; before there is something to go by nothing is alike."""

import pytest
import torch

from specblock.drafters.lookup.states import LEAST, SIZE, StateKeys


def states(count: int, width: int = 96, seed: int = 0) -> torch.Tensor:
    """With one dimension that is larger than all others, as transformers have."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    x[:, 5] = 300.0 + 40.0 * x[:, 5]
    return x


def test_cosines_of_standardised_states_survive():
    seen = states(400)
    keys = StateKeys()
    keys.fit(seen)
    made = keys(seen)
    assert made.shape == (400, SIZE)
    assert made.dtype == torch.int8
    standard = torch.nn.functional.normalize((seen - seen.mean(0)) / seen.std(0), dim=-1)
    near = torch.nn.functional.normalize(standard[0] + 0.3 * standard[1:40], dim=-1)
    nearby = keys(near * seen.std(0) + seen.mean(0))
    for own, other in ((standard, made), (near, nearby)):
        wanted, found = own @ standard[0], keys.similarity(other, seen[0])
        assert (wanted - found).abs().max() < 0.4
        assert (wanted - found).pow(2).mean().sqrt() < 1.2 / SIZE**0.5
    assert keys.similarity(made, seen[0])[0] == pytest.approx(1.0, abs=0.02)


def test_of_several_layers_the_last_is_the_state():
    keys, both = StateKeys(2), StateKeys()
    seen = states(64)
    keys.fit(torch.cat((torch.randn(64, 96), seen), dim=1))
    both.fit(seen)
    assert torch.equal(keys(torch.cat((torch.zeros(64, 96), seen), dim=1)), both(seen))


def test_too_few_states_say_nothing():
    keys = StateKeys()
    keys.fit(states(LEAST - 1))
    keys.fit(torch.zeros(LEAST, 0))
    assert not keys.ready
    assert not keys(states(3)).any()
    keys.fit(states(LEAST))
    assert keys.ready
    before = keys(states(3))
    keys.fit(states(LEAST, seed=1) * 7)
    assert torch.equal(keys(states(3)), before), "fitted once, or keys would not compare"


def test_restored_keys_are_the_same():
    keys, again = StateKeys(), StateKeys()
    again.restore(keys.to_dict())
    assert not again.ready
    keys.fit(states(64))
    again.restore(keys.to_dict())
    assert torch.equal(keys(states(9, seed=3)), again(states(9, seed=3)))
