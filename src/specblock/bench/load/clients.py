"""Clients of the engine and of transformers' continuous batching: who is answered asks again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from transformers import ContinuousBatchingConfig
from transformers import GenerationConfig as TransformersConfig

from specblock.bench.load.served import Request, Turn
from specblock.bench.measure.methods import PLAIN
from specblock.config import GenerationConfig
from specblock.engine.speculator import Speculator

__all__ = ["METHODS"]

SPECBLOCK, PEER = "specblock", "transformers"
_PAGE = 256  # positions of a page of its cache
Serve = Callable[[Speculator, Sequence[list[int]], GenerationConfig, int], Turn]


def _engine(name: str, drafting: bool) -> Serve:
    def serve(
        speculator: Speculator, prompts: Sequence[list[int]], config: GenerationConfig, clients: int
    ) -> Turn:
        return by_engine(name, drafting, speculator, prompts, config, clients)

    return serve


def by_engine(
    name: str,
    drafting: bool,
    speculator: Speculator,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
    clients: int,
) -> Turn:
    """The engine's answers; ``drafting``: with the drafter."""
    engine, waiting = speculator.engine, deque(prompts)
    engine.most_running = clients
    begun, steps = time.perf_counter(), engine.steps
    running: list[tuple[Any, float, list[tuple[float, int, Any]]]] = []
    done: list[list[tuple[float, int, Any]]] = []
    while waiting or running:
        while waiting and len(running) < clients:
            handle = speculator.ask(waiting.popleft(), config, use_drafter=drafting)
            running.append((handle, time.perf_counter(), []))
        for entry in list(running):
            handle, asked, pieces = entry
            chunk = next(handle)
            pieces.append((time.perf_counter() - asked, len(chunk.token_ids), chunk.stats))
            if chunk.finish_reason is not None:
                handle.cancel()
                running.remove(entry)
                done.append(pieces)
    seconds = time.perf_counter() - begun
    requests = [
        Request(sum(count for _, count, _ in pieces), pieces[0][0], pieces[-1][0])
        for pieces in done
    ]
    nodes = sum(pieces[-1][2].drafted_nodes for pieces in done)
    return Turn(name, clients, seconds, requests, engine.steps - steps, nodes)


def by_transformers(
    speculator: Speculator, prompts: Sequence[list[int]], config: GenerationConfig, clients: int
) -> Turn:
    """The answers of ``generate_batch`` with the model as it is; as many at a time as clients."""
    model = speculator.target.model
    ends = [-1] if config.ignore_eos else sorted(speculator.end_tokens())
    settings = TransformersConfig(
        max_new_tokens=config.max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=0
    )
    # left alone its cache takes nine tenths of the memory that is free
    pages = math.ceil((max(map(len, prompts)) + config.max_new_tokens) / _PAGE)
    cache = ContinuousBatchingConfig(
        page_size=_PAGE, num_blocks=(clients + 1) * pages, max_requests_per_batch=clients
    )
    started = time.perf_counter()
    answers = model.generate_batch(
        [list(prompt) for prompt in prompts],
        generation_config=settings,
        continuous_batching_config=cache,
        record_timestamps=True,
    )
    seconds = time.perf_counter() - started
    requests = []
    for answer in answers.values():
        # all are asked at once there: a request's clock begins when its turn comes
        begun, stamps = answer.lifespan[0], answer.timestamps
        requests.append(
            Request(len(answer.generated_tokens), stamps[0] - begun, stamps[-1] - begun)
        )
    return Turn(PEER, clients, seconds, requests)


METHODS: dict[str, Serve] = {
    PLAIN: _engine(PLAIN, drafting=False),
    SPECBLOCK: _engine(SPECBLOCK, drafting=True),
    PEER: by_transformers,
}
