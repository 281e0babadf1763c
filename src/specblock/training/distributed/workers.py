"""The processes that train together, through ``accelerate``.

``torchrun`` or ``accelerate launch`` starts them; one process is the same thing with nobody to
talk to. Every process has its own part of each batch, and the whole drafter (DDP) or a part of its
trained weights (FSDP2, :mod:`specblock.training.distributed.sharding`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch import distributed as dist

from specblock.errors import ConfigError


class Workers:
    """This process among those that train together.

    Args:
        cpu: stay on the CPU although there is an accelerator.

    Raises :class:`ConfigError` for launch settings that divide the drafter in ways of their own.
    """

    def __init__(self, *, cpu: bool = True):
        from accelerate import Accelerator
        from accelerate.utils import DistributedType

        # objectives run every part of a drafter on every batch, if need be on no rows: DDP need
        # not look for parameters without a gradient
        self._accelerator = Accelerator(cpu=cpu, mixed_precision="no")
        sharding = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
        if self._accelerator.distributed_type in sharding:
            raise ConfigError(
                f"Training does not run under {self._accelerator.distributed_type.value} settings; "
                "launch it without these, and give --sharded to divide the drafter (FSDP2)."
            )
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self._divided = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def wrap(self, network: nn.Module, *, sharded: bool = False) -> nn.Module:
        """``network`` on this process's device; gradients are averaged where there are several.

        ``sharded``: divide its trained weights among them.
        """
        self._divided = sharded and self.count > 1
        if self._divided:
            from specblock.training.distributed.sharding import (
                shard,  # a slow import, seldom wanted
            )

            return shard(network, self.device)
        return self._accelerator.prepare_model(network)

    def unsynchronised(self, network: nn.Module) -> AbstractContextManager:
        """For all micro-batches of a step but the last: gradients stay here."""
        if self._divided:
            from specblock.training.distributed.sharding import gradients_kept

            return gradients_kept(network)
        return self._accelerator.no_sync(network)

    def maximum(self, *values: float) -> list[float]:
        """The largest of each value over all processes, so that all decide alike."""
        if self.count == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def total(self, values: Tensor) -> Tensor:
        """The sum of every element over all processes, on the CPU."""
        if self.count == 1:
            return values
        found = values.to(self.device, copy=True)
        dist.all_reduce(found)
        return found.cpu()

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()
