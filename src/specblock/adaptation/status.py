"""What is told of an adaptation, to people and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specblock.adaptation.learning.arms import ordinary_config

if TYPE_CHECKING:
    from specblock.adaptation.adapter import Adaptation

__all__ = ["status_of"]


def status_of(adaptation: Adaptation) -> dict[str, Any]:
    """See :meth:`specblock.adaptation.adapter.Adaptation.status`."""
    learner, ledger = adaptation.learner, adaptation.ledger
    config = ordinary_config(adaptation.drafter.model.config, learner.current)
    return {
        **adaptation.journal.summary(adaptation.costs.estimate()),
        "decoded_seconds": ledger.decoded,
        "update_seconds": ledger.machine,
        "delay_seconds": ledger.spent,
        "saved_seconds": ledger.saved,
        "gain": adaptation.total_gain,
        "accepted_length": adaptation.signals.tau.fast,
        "begun": learner.begun,
        "drafts": adaptation.asking.pays,
        "adapted": learner.current is not learner.start,
        "own_head": not config.target_lm_head,
        "buffer": adaptation.buffer.statistics(),
        "memory_tokens": 0 if adaptation.memory is None else len(adaptation.memory),
    }
