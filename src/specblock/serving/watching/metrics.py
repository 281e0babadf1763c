"""Prometheus metrics, named as vLLM's are with our prefix, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from specblock.engine.engine import Engine
from specblock.engine.statistics import GenerationStats

__all__ = ["Metrics"]

# seconds
_FIRST = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
          80.0, 160.0)  # fmt: skip
_BETWEEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
          240.0, 480.0, 960.0)  # fmt: skip


class Metrics:
    """The counters; Prometheus appends ``_total`` to their names."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.drafts = self._counter("spec_decode_num_drafts", "Rounds that verified a draft.")
        self.draft_tokens = self._counter("spec_decode_num_draft_tokens", "Draft nodes verified.")
        self.accepted_tokens = self._counter(
            "spec_decode_num_accepted_tokens", "Draft tokens accepted, bonus tokens left out."
        )
        self.accepted_by_position = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted at each depth of the tree, from 0.",
            ("position",),
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens of answers.")
        self.success = self._counter(
            "request_success", "Requests that ended.", ("finished_reason",)
        )
        self.time_to_first = self._histogram("time_to_first_token_seconds", _FIRST)
        self.between_tokens = self._histogram("inter_token_latency_seconds", _BETWEEN)
        self.latency = self._histogram("e2e_request_latency_seconds", _WHOLE)
        self.queue_time = self._histogram("request_queue_time_seconds", _WHOLE)
        for place, name in enumerate(("num_requests_running", "num_requests_waiting")):
            gauge = Gauge(f"specblock:{name}", "Requests now.", registry=self.registry)
            gauge.set_function(lambda place=place: engine.counts[place])

    def first_token(self, seconds: float, stats: GenerationStats) -> None:
        """A prompt has been read."""
        self.time_to_first.observe(seconds)
        self.prompt_tokens.inc(stats.prompt_tokens)

    def text(self) -> bytes:
        """All of them in Prometheus's format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, says: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"specblock:{name}", says, labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        says = "Seconds."
        return Histogram(f"specblock:{name}", says, registry=self.registry, buckets=buckets)
