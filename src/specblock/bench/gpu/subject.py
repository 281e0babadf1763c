"""What the stages decode with: the embedded model and its drafters, or random ones as small as can
be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specblock.bench.costs.shapes import Shape, drafter_network
from specblock.bench.gpu.scale import Scale
from specblock.bench.measure.weights import shipped_weights
from specblock.drafters.checkpoint import save_checkpoint
from specblock.drafters.starting.head import attach_target
from specblock.storage import write_atomically
from specblock.target.loading.zoo import load_model, locate_model

__all__ = ["PROMPTS", "Subject", "random_answers", "subject"]

MODEL = "smollm2-135m-instruct"
PROMPTS = (
    "Explain why the sky is blue, and why sunsets are red.",
    "Write a short story about a lighthouse keeper and his cat.",
    "Translate into French: The train to the coast leaves at half past nine.",
    "A shop sells pens at 3 for 2 euros. What do 12 pens cost? Think step by step.",
)


@dataclass(frozen=True)
class Subject:
    """A target, its tokenizer, and folders of drafters by kind."""

    network: nn.Module
    tokenizer: Any
    folders: dict[str, Path]


def subject(scale: Scale, work: Path, dtype: torch.dtype | None = None) -> Subject:
    """Load, or make; random drafters are kept below ``work``."""
    dtype = dtype or scale.dtype
    if scale.decoded is None:
        network, tokenizer = load_model(MODEL, dtype=dtype, device=scale.device)
        return Subject(network, tokenizer, shipped_weights(MODEL))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate_model(MODEL))
    network = random_target(scale.decoded, scale.device, dtype)
    return Subject(network, tokenizer, random_drafters(scale.decoded, network, work))


def random_target(shape: Shape, device: str, dtype: torch.dtype, lively: float = 4.0) -> nn.Module:
    """A target of a shape; ``lively`` makes its logits larger than a fresh one's."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(
            shape.target_config(), dtype=dtype, attn_implementation="sdpa"
        )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(lively)
    return network.eval().requires_grad_(False)


def random_drafters(shape: Shape, network: nn.Module, work: Path) -> dict[str, Path]:
    """One of each kind for a target of a shape."""
    folders, device = {}, next(network.parameters()).device
    for kind in ("eagle3", "specblock"):
        drafter = drafter_network(shape, kind)
        attach_target(drafter, network.to("cpu"), head=False)
        folders[kind] = work / "random" / kind
        save_checkpoint(drafter, folders[kind], dtype=torch.float32)
    network.to(device)
    return folders


def random_answers(own: Subject, work: Path, count: int = 12, length: int = 24) -> Path:
    """A file of answers that nobody gave: they serve to rehearse a training."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, own.network.config.vocab_size, (count, 2, length), generator=generator)
    rows = [
        {
            "id": f"a{number}",
            "turn": 0,
            "prompt_ids": prompt,
            "answer_ids": answer,
            "finish_reason": "length",
        }
        for number, (prompt, answer) in enumerate(ids.tolist())
    ]
    path = work / "answers.jsonl"
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path
