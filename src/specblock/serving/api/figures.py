"""The figures of an answer under the names that programs know."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from specblock.engine.statistics import GenerationStats

__all__ = ["figures", "usage"]


def usage(each: Sequence[GenerationStats], choices: int) -> dict[str, Any]:
    """Tokens of all answers; a prompt counts once, however many ``choices`` it has."""
    prompts = each[::choices]
    prompt = sum(stats.prompt_tokens for stats in prompts)
    written = sum(stats.new_tokens for stats in each)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(stats.cached_tokens for stats in prompts)},
    }


def figures(each: Sequence[GenerationStats], max_nodes: int) -> dict[str, Any]:
    """``timings`` as llama.cpp has them, summed over the answers, and ``metrics`` as vLLM has them,
    of a single answer. ``max_nodes``: most draft nodes of a round."""
    one = each[0] if len(each) == 1 else None
    return {
        "timings": _timings(each),
        "metrics": {"speculative_decoding": None if one is None else _acceptance(one, max_nodes)},
    }


def _timings(each: Sequence[GenerationStats]) -> dict[str, Any]:
    cached = sum(stats.cached_tokens for stats in each)
    read = sum(stats.prompt_tokens for stats in each) - cached
    reading = sum(stats.prefill_seconds for stats in each)
    written = sum(stats.new_tokens for stats in each)
    writing = sum(stats.decode_seconds for stats in each)
    later = written - len(each)  # the first token of each comes of its prompt
    return {
        "cache_n": cached,
        "prompt_n": read,
        "prompt_ms": 1000 * reading,
        "prompt_per_second": read / reading if reading else None,
        "predicted_n": written,
        "predicted_ms": 1000 * writing,
        "predicted_per_second": later / writing if writing > 0 else None,
        "draft_n": sum(stats.drafted_nodes for stats in each),
        "draft_n_accepted": sum(sum(stats.accepted_by_depth) for stats in each),
    }


def _acceptance(stats: GenerationStats, max_nodes: int) -> dict[str, Any]:
    """Of the rounds that verified a draft."""
    rounds, accepted = stats.speculative_rounds, sum(stats.accepted_by_depth)
    more = [rounds, *stats.accepted_by_depth, 0]  # rounds that accepted at least 0, 1, 2, ...
    return {
        "mean_acceptance_length": 1 + accepted / rounds if rounds else 1.0,
        "draft_acceptance_rate": accepted / stats.drafted_nodes if stats.drafted_nodes else 0.0,
        "acceptance_histogram": [n - after for n, after in pairwise(more)],
        "num_spec_steps": rounds,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": stats.drafted_nodes,
        "num_spec_tokens": max_nodes,
    }
