"""The costs that the paper's own figures imply.

A method that accepts tau tokens a round and decodes S times as fast as plain decoding takes
tau / S plain steps a round. Its share of drafting divides that into drafting and all the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from specblock.budget.costs import CostTable

__all__ = ["EAGLE3", "NODES", "PLAIN_SECONDS", "SPECBLOCK", "PublishedRun", "paper_tables"]


@dataclass(frozen=True)
class PublishedRun:
    """A method's figures on one benchmark: speed-up over plain decoding, accepted length tau, share
    of the time that is drafting; ``calls`` of the drafter's network a round."""

    speedup: float
    tau: float
    drafting_share: float
    calls: int

    @property
    def round_steps(self) -> float:
        """Plain steps of a round."""
        return self.tau / self.speedup

    @property
    def drafting_steps(self) -> float:
        """Plain steps of drafting in a round."""
        return self.drafting_share * self.round_steps

    @property
    def verifying_steps(self) -> float:
        """Plain steps of everything else in a round."""
        return self.round_steps - self.drafting_steps


# Llama-3.1-8B, greedy, one A100-80GB, batch 1, 60 nodes (arXiv 2605.07243, as summaries of it
# report; another summary has 4.23 and 4.54 for other runs).
EAGLE3 = PublishedRun(speedup=3.59, tau=5.89, drafting_share=0.31, calls=8)
SPECBLOCK = PublishedRun(speedup=3.92, tau=5.16, drafting_share=0.16, calls=2)
NODES = 60
PLAIN_SECONDS = 1 / 34.5  # plain tokens a second in the authors' code; ratios do not depend on it


def paper_tables() -> dict[str, CostTable]:
    """Cost tables by kind of drafter.

    Verifying takes the mean of what both methods' figures imply, and the target's seconds run
    straight from one row to that. Drafting is divided evenly among the calls of a round; how many
    pairs or leaves a call has does not matter, as nothing published says how much.
    """
    verifying = (EAGLE3.verifying_steps + SPECBLOCK.verifying_steps) / 2
    target = {1: PLAIN_SECONDS, NODES + 1: verifying * PLAIN_SECONDS}

    def table(run: PublishedRun) -> CostTable:
        call = run.drafting_steps * PLAIN_SECONDS / run.calls
        return CostTable(target, {1: call}, {1: call})

    return {"eagle3": table(EAGLE3), "specblock": table(SPECBLOCK)}
