"""FSDP2: every process keeps a part of what is trained, of its gradient and of its moments.

The whole weights exist from a forward to the end of its backward, the whole gradient until it is
divided. Beside these a weight takes 4 + 16 / n bytes in each of n processes instead of 12, so it
pays from three on, where a drafter's moments do not fit beside the target. What the rest of
training sees are ordinary parameters of the type ``DTensor``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, device: torch.device) -> nn.Module:
    """Divide the trained weights of ``network``, process 0's, among all processes; in place.

    Frozen weights stay whole in every process: they are mostly the target's own. As with DDP
    process 0's are everybody's.
    """
    network.to(device)
    for tensor in (*network.parameters(), *network.buffers()):
        dist.broadcast(tensor.data, 0)
    frozen = {p for p in network.parameters() if not p.requires_grad}
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    return fully_shard(network, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)


@contextmanager
def gradients_kept(network: FSDPModule) -> Iterator[None]:
    """Inside, backward adds to every process's own whole gradients and exchanges none."""
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


@contextmanager
def whole(network: nn.Module) -> Iterator[None]:
    """Inside, ``network`` has its whole weights, for reading; all processes must enter."""
    if not isinstance(network, FSDPModule):
        yield
        return
    network.unshard()
    try:
        yield
    finally:
        network.reshard()


@torch.no_grad()
def dissolve(network: nn.Module) -> None:
    """Give ``network`` ordinary whole parameters for good; all processes must call this."""
    made: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(parameter.full_tensor())
                module.register_parameter(name, made[id(parameter)])


def gathered(state: Any) -> Any:
    """``state`` with whole tensors in the places of divided ones; all processes must call this."""
    if isinstance(state, DTensor):
        return state.detach().full_tensor()
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    return state


def load_gathered(
    model: nn.Module, optimiser: torch.optim.Optimizer, weights: dict[str, Tensor], moments: dict
) -> None:
    """Load what :func:`gathered` made of their states, ``weights`` perhaps of some parts alone.

    Raises KeyError where a parameter that is trained is not among the weights.
    """
    own = model.state_dict()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in weights:
            raise KeyError(f"no weights of {name}")
    model.load_state_dict({n: _like(w, own[n]) for n, w in weights.items()}, strict=False)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    divided = {
        number: {key: _like(value, parameters[number]) for key, value in entries.items()}
        for number, entries in moments["state"].items()
    }
    optimiser.load_state_dict({**moments, "state": divided})


def _like(value: Any, own: Tensor) -> Any:
    """``value`` divided as ``own`` is, if it is as large; counters and the like as they are."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
