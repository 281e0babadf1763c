"""Ridge regression from sums, for starting drafters in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """Every row scaled to root-mean-square 1, fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Ridge:
    """Accumulates X'X and X'Y; solves for the ridge regression Y ~ X."""

    def __init__(self, inputs: int, outputs: int):
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.xy = torch.zeros(inputs, outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        self.xx += x.t() @ x
        self.xy += x.t() @ y

    def solve(self, strength: float) -> Tensor:
        """Weights ``[outputs, inputs]``; ``strength`` is relative to the mean of the diagonal."""
        ridge = strength * self.xx.diagonal().mean() * torch.eye(len(self.xx), dtype=torch.float64)
        return torch.linalg.solve(self.xx + ridge, self.xy).t().float()


def strongest_directions(weights: Tensor, moments: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``weights [O, I]`` cut to ``rank`` directions, the ones that move its output most.

    Args:
        moments: [I, I], X'X of the inputs.

    Returns:
        ``up [O, rank]`` with orthonormal columns and ``down [rank, I]``; their product is the
        approximation.
    """
    covariance = weights @ moments @ weights.t()
    basis = torch.linalg.eigh(covariance).eigenvectors[:, -rank:]
    return basis, basis.t() @ weights
