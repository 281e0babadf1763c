"""Does each node of a verified tree see its own path alone, and does every position count right?"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from specblock.doctor.finding import Verdict, ok, skipped, warning, wrong
from specblock.doctor.patient import Patient
from specblock.target.architecture.structure import cache_argument, forward_of
from specblock.target.architecture.verifiable import distances_from_plain, most_distance
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree

_NOISY, _MARGIN = 6, 2.0  # texts whose rounding is looked at, and how much more others may have
_SPREAD = 0.5  # more is no rounding but other logits
_TAIL = 32  # tokens read before the tree, and behind the context that is filled up


def mask_rows(patient: Patient) -> Verdict:
    """A tree verified in one forward gives each node the logits of its path alone."""
    target, most = patient.target, _allowed(patient)
    apart = distances_from_plain(target, _tail(patient).tolist())
    target.text = None
    worst, median = float(apart.max()), float(apart.median())
    figures = {"nodes": len(apart), "worst": worst, "median": median, "allowed": most}
    found = (
        f"{len(apart)} nodes, logits at most {worst:.1e} of their spread from those of the path "
        f"alone ({most:.1g} allowed)"
    )
    advice = (
        "report it with the model's name: verified drafts are judged by the wrong logits. Until "
        "then decode with --drafter none"
    )
    if not median <= most:
        return wrong(found, advice, **figures)
    if not worst <= most:
        return warning(
            found,
            "a mixture of experts rounds single rows to other experts; with other models report it",
            **figures,
        )
    return ok(found, **figures)


def long_context(patient: Patient) -> Verdict:
    """Near the end of the context our positions are the model's own.

    Reading so long a text would take minutes. So both caches are filled with the same keys and
    values, repeated, and only the last tokens are read, by our target and by the model as it is.
    """
    target = patient.target
    if not target.packs or target.positions.restart is not None:
        return skipped("this model's cache cannot be filled from outside")
    tail = _tail(patient)
    filled, end = _room(target, tail)
    if filled < 1:
        return skipped("there is no memory for two caches")
    apart = _distance(target, tail, filled)
    most = _allowed(patient)
    last = filled + len(tail) - 1
    figures = {"position": last, "context": target.positions.trained, "worst": apart}
    figures["allowed"] = most
    found = f"at position {last} of {end} logits are {apart:.1e} of their spread from the model's"
    if not apart <= most:
        return wrong(
            f"{found} own",
            "report it with the model's rope_scaling: long texts are decoded by the wrong logits. "
            "Until then keep texts short",
            **figures,
        )
    return ok(f"{found} own", **figures)


@torch.inference_mode()
def _allowed(patient: Patient) -> float:
    """How far apart logits may be, in units of their spread: what rounding does at most in a small
    model, or in this one, where a prompt is read without any tree by our target and by the model
    itself. Of several layers in half precision that is the larger."""
    target, tail, noise = patient.target, _tail(patient), []
    # a tree's tokens are as good as random, and of such a text more is rounded
    ids = tail[torch.randperm(len(tail), generator=torch.Generator().manual_seed(0))]
    text = torch.cat((tail, ids))
    for length in range(len(tail) + 1, len(tail) + 1 + min(_NOISY, len(tail))):
        target.reset(length)
        ours = target.prefill(text[:length]).logits
        theirs = target.model(input_ids=text[None, :length], use_cache=False).logits[0, -1]
        noise.append(float((ours - theirs).abs().max() / theirs.std()))
    target.text = None
    return max(most_distance(target.dtype), _MARGIN * min(max(noise), _SPREAD))


def _tail(patient: Patient) -> Tensor:
    most = min(_TAIL, patient.target.context_length // 2)
    ids = [token for prompt in patient.prompts for token in prompt][:most]
    return torch.tensor(ids, device=patient.target.device)


def _room(target: Target, tail: Tensor) -> tuple[int, int]:
    """How many positions to fill, so that the text ends with the context or with the memory that
    two caches may take; and where the context ends."""
    target.reset(len(tail))
    target.prefill(tail)
    memory = target.texts.most_bytes // max(1, target.cache.position_bytes) // 2
    target.text = None
    end = target.context_length
    return min(end, memory) - len(tail), end


@torch.inference_mode()
def _distance(target: Target, tail: Tensor, filled: int) -> float:
    """Between our logits of the last token and the model's own, in units of their spread."""
    model, name = target.model, cache_argument(forward_of(target.model))
    short = DynamicCache(config=target.config)
    model(input_ids=tail[None], use_cache=True, **{name: short})
    own = DynamicCache(config=target.config)
    target.reset(filled + len(tail))
    for index, layer in enumerate(short.layers):
        keys, values = (
            states.repeat(1, 1, -(-filled // states.shape[2]), 1)[:, :, :filled]
            for states in (layer.keys, layer.values)
        )
        own.update(keys, values, index)
        target.cache.update(keys, values, index)
    target.cache.advance(filled)
    target.prefill(tail[:-1])
    ours = target.verify(DraftTree.root_only(int(tail[-1]), target.device)).logits[0]
    target.text = None
    theirs = model(input_ids=tail[None], use_cache=True, **{name: own}).logits[0, -1]
    return float((ours - theirs).abs().max() / theirs.std())
