"""The other side of updates in a process of their own: what is sent there, and what it does."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.learning.arms import CORRECTION
from specblock.adaptation.learning.learner import Attempt, Job, Learner, Weights, contained_attempt
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.network import SpecBlockModel

_NICENESS = 10  # decoding goes first

_learner: Learner | None = None  # of this process


@dataclass(frozen=True)
class Copied:
    """The drafter as the adaptation found it, for an equal learner elsewhere."""

    network: SpecBlockConfig
    tensors: dict[str, Tensor]
    config: AdaptationConfig

    @classmethod
    def of(cls, learner: Learner, config: AdaptationConfig) -> Copied:
        tensors = {**learner.master.state_dict(), **learner.original}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in CORRECTION}
        return cls(learner.master.config, tensors, config)


@dataclass(frozen=True)
class Asked:
    """A job, the weights in use (None: the original ones), the state of the arm's optimiser."""

    job: Job
    current: Weights | None
    optimiser: dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What came of it, and the optimiser's state after it."""

    attempt: Attempt
    optimiser: dict[str, Any]


def open_learner(data: bytes) -> None:
    """The process begins: ``data`` is a pickled :class:`Copied`."""
    global _learner
    copied: Copied = pickle.loads(data)
    torch.set_num_threads(copied.config.process_threads)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    network = SpecBlockModel(copied.network)
    network.load_state_dict(copied.tensors)
    _learner = Learner(network, copied.config)


def answer(data: bytes) -> bytes:
    """One attempt: a pickled :class:`Asked` to a pickled :class:`Told`."""
    asked: Asked = pickle.loads(data)
    learner = _learner
    learner.current = learner.original if asked.current is None else asked.current
    learner.optimisers[asked.job.arm].load_state_dict(asked.optimiser)
    attempt = contained_attempt(learner, asked.job)
    return pickle.dumps(Told(attempt, learner.optimisers[asked.job.arm].state_dict()))
