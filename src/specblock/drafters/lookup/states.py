"""Keys of the target's hidden states: alike where it is about to go on alike.

The words before a place say less about what follows than the state the target was in. kNN language
models (Khandelwal et al., 2020) predict from the states nearest to the present one; here these say
what to draft. A state is standardised by what the first states looked like (a few of
its dimensions are larger than all others together), projected at random to a fifth of its size,
which keeps angles (Johnson and Lindenstrauss), brought to unit length and rounded to 8 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 128  # bytes of a key
LEAST = 32  # states that tell what states look like
_SCALE = 256.0  # of unit length over 128 dimensions nearly all are below 127 / 256
_SEED = 20_260_507  # of the random matrix; states saved depend on it


class StateKeys:
    """Makes keys of a target's features once it has seen some.

    Args:
        layers: how many layers' outputs a row of features holds; the last one's is the state.
    """

    def __init__(self, layers: int = 1):
        self.layers = layers
        self._mean: Tensor | None = None
        self._deviation: Tensor | None = None

    @property
    def ready(self) -> bool:
        """Whether there are keys yet."""
        return self._mean is not None

    def fit(self, features: Tensor) -> None:
        """Learn what states look like from ``features [n, F * H]``; once, and from 32 at least."""
        if self.ready or len(features) < LEAST or not features.shape[1]:
            return
        states = self._states(features)
        self._standardise(states.mean(0), states.std(0).clamp(min=1e-6))

    def _standardise(self, mean: Tensor, deviation: Tensor) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        projection = torch.randn(len(mean), SIZE, generator=generator) / deviation[:, None]
        self._mean, self._deviation = mean, deviation
        self._projection, self._middle = projection, mean @ projection

    def __call__(self, features: Tensor) -> Tensor:
        """Keys int8 [n, 128] on the CPU; of all zeros, alike to nothing, while there are none."""
        if not self.ready:
            return torch.zeros(len(features), SIZE, dtype=torch.int8)
        return (self._directions(features) * _SCALE).round().clamp(-127, 127).to(torch.int8)

    def similarity(self, keys: Tensor, feature: Tensor) -> Tensor:
        """Cosines of ``keys`` int8 [n, 128] with the state of ``feature [F * H]``, fp32 [n]."""
        return (keys.float() @ self._directions(feature[None])[0]) / _SCALE

    def _directions(self, features: Tensor) -> Tensor:
        projected = self._states(features) @ self._projection - self._middle
        return torch.nn.functional.normalize(projected, dim=-1)

    def _states(self, features: Tensor) -> Tensor:
        return features[:, -(features.shape[1] // self.layers) :].float().cpu()

    def to_dict(self) -> dict[str, Tensor]:
        """What was learned; nothing while it has not been."""
        return {"mean": self._mean, "deviation": self._deviation} if self.ready else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`to_dict` gave."""
        if state:
            self._standardise(state["mean"], state["deviation"])
