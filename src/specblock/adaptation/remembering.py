"""Adaptation of drafters that cannot learn: their answers are remembered, nothing is updated."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from filelock import FileLock

from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.containment import Contained
from specblock.adaptation.feedback.answer import AnswerObserver
from specblock.adaptation.learning.preemption import Waiting
from specblock.adaptation.state import STATES_KEPT, STATUS
from specblock.adaptation.stored_state import ADVICE, MemoryState, check_identity
from specblock.drafters.lookup.memory import TextMemory
from specblock.engine.statistics import GenerationStats
from specblock.errors import ConfigError
from specblock.storage import write_atomically
from specblock.stored import restoring
from specblock.training.loop.checkpoints import load_newest, save_next

_log = logging.getLogger("specblock")


class Remembering:
    """What :class:`specblock.adaptation.adapter.Adaptation` is for SpecBlock, without updates.

    Args:
        vocabulary: tokens of the target, whose ids a folder's memory must be.
        layers: whose outputs are the features, the last one's the states that are remembered.
        config: its folder is resumed from.
        target: its digest, whose folder it must be; None does not look.

    Raises:
        ConfigError: a policy that updates weights, or the folder is another model's.
        CheckpointError: what is in the folder is something else.
    """

    def __init__(
        self,
        vocabulary: int,
        layers: tuple[int, ...],
        config: AdaptationConfig,
        target: str | None = None,
    ):
        if config.policy.startswith("always-"):
            raise ConfigError(
                f"Only a SpecBlock drafter can learn, so there is nothing to do for "
                f"{config.policy}: choose one with --drafter, or the policy memory."
            )
        self.lock: FileLock | None = None  # of the folder
        self.config, self.memory = config, TextMemory.of_size(config.memory_mib, len(layers))
        self._identity = {"remembering": vocabulary, "layers": list(layers), "target": target}
        self._decoded, self._requests, self._saved = 0.0, 0, time.monotonic()
        if config.folder is not None:
            self._resume()

    def observer(self, prompt: list[int]) -> AnswerObserver:
        """Collects one answer."""
        return AnswerObserver()

    def finished(
        self, observer: AnswerObserver, stats: GenerationStats, *, complete: bool = True
    ) -> None:
        """A request has ended, or was broken off: what was said of it is kept."""
        self._decoded += stats.decode_seconds
        self._requests += 1
        if self.memory is not None:
            observer.remember_in(self.memory, stats.new_tokens)
        if time.monotonic() - self._saved >= self.config.save_every_seconds:
            self.save()

    def rest(self, waiting: Waiting) -> bool:
        """There is nothing to learn in a gap."""
        return False

    def came(self, gap: float, delays: list[float]) -> None:
        """And so nobody waits."""

    def close(self) -> None:
        """Save; the folder is others' then."""
        self.save()
        if self.lock is not None:
            self.lock.release()

    def save(self) -> None:
        """Write the memory to the config's folder, if there is one; whole or not at all."""
        folder = self.config.folder
        if folder is None:
            return
        with Contained("saving the memory of answers"):
            kept = None if self.memory is None else self.memory.to_dict()
            state = {"identity": self._identity, "memory": kept}
            save_next(folder, state, STATES_KEPT)
            write_atomically(folder / STATUS, json.dumps(self.status(), indent=1) + "\n")
        self._saved = time.monotonic()

    def _resume(self) -> None:
        found = load_newest(self.config.folder, _log.warning)
        if found is None:
            return
        path, values = found
        check_identity(path, self._identity, values)
        state = MemoryState.of(values, path, ADVICE)
        if self.memory is not None and state.memory is not None:
            with restoring(path, "memory", ADVICE):
                self.memory.restore(state.memory)

    def status(self) -> dict[str, Any]:
        """As :meth:`Adaptation.status`, without arms."""
        return {
            "arms": {},
            "skips": 0,
            "decoded_seconds": self._decoded,
            "update_seconds": 0.0,
            "delay_seconds": 0.0,
            "saved_seconds": 0.0,
            "accepted_length": None,
            "adapted": False,
            "buffer": {"records": 0, "held_out": 0, "bytes": 0, "seen": self._requests},
            "memory_tokens": 0 if self.memory is None else len(self.memory),
        }
