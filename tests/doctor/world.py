"""A target that counts round a circle, and an EAGLE-3 drafter that knows how, made by hand.

The layers of the target add a constant each, one step further along one direction. The drafter
takes two of them apart, so that with the layers next to its own it is blind. Nothing is trained.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import SIZES, VOCABULARY, make_target

from specblock.budget.costs import CostTable
from specblock.doctor.examine import examine
from specblock.doctor.patient import Request
from specblock.drafters.checkpoint import save_checkpoint
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.fingerprint import tokenizer_fingerprint
from specblock.drafters.registry import make_drafter
from specblock.engine.machine.calibrate import Calibration, calibration_key, calibration_path
from specblock.kernels.route_table import RouteTable
from specblock.storage import write_atomically
from specblock.target.model import Target

LAYERS, DRAFT = (1, 3, 4), 40
FIRST, LENGTH = 5, 12  # of the circle
HIDDEN = SIZES["hidden_size"]
TEMPLATE = (
    "{% for m in messages %}w3 {{ m['content'] }} w2 {% endfor %}"
    "{% if add_generation_prompt %}w3 {% endif %}"
)


def follower(token: int) -> int:
    """What the target says after a token."""
    return FIRST + (token - FIRST + 1) % LENGTH


def directions():
    """Embeddings [V, H] without, and the one direction [H] along which layers move."""
    generator = torch.Generator().manual_seed(5)
    along = torch.zeros(HIDDEN)
    along[0] = 1.0
    embeddings = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    embeddings[:, 0] = 0.0
    return embeddings / embeddings.norm(dim=-1, keepdim=True), along


@torch.no_grad()
def counting_target():
    model = make_target("qwen2", tie_word_embeddings=False)
    embeddings, along = directions()
    model.model.embed_tokens.weight.copy_(embeddings)
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.v_proj.weight.zero_()
        attention.v_proj.bias.fill_(1.0)
        attention.o_proj.weight.zero_()
        attention.o_proj.weight[:, 0] = 8.0 * along
        layer.mlp.down_proj.weight.zero_()
    model.model.norm.weight.fill_(1.0)
    model.lm_head.weight.zero_()
    for token in range(VOCABULARY):
        model.lm_head.weight[follower(token)] += embeddings[token] * (token < FIRST + LENGTH)
    model.lm_head.weight.mul_(40.0)
    return model


@torch.no_grad()
def counting_model(tokenizer, **changes) -> Eagle3Model:
    settings = {
        "hidden_size": HIDDEN, "vocab_size": VOCABULARY, "target_layers": 6,
        "feature_layers": LAYERS, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "draft_vocab_size": DRAFT,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer), "target_name": "counting",
    }  # fmt: skip
    torch.manual_seed(0)
    model = Eagle3Model(Eagle3Config(**{**settings, **changes}))
    embeddings, along = directions()
    drafted = torch.arange(DRAFT) + 3
    model.d2t.copy_(drafted - torch.arange(DRAFT))
    model.t2d.zero_()
    model.t2d[drafted] = True
    # of 2, 4 and 5 steps along the direction nothing is left, of the embedding all
    model.fc.weight.copy_(torch.cat([share * torch.eye(HIDDEN) for share in (2.0, -1.0, 0.0)], 1))
    model.midlayer.self_attn.o_proj.weight.zero_()
    model.midlayer.mlp.down_proj.weight.zero_()
    model.lm_head.weight.zero_()
    for token in range(FIRST + LENGTH):
        model.lm_head.weight[follower(follower(token)) - 3] += embeddings[token]
    model.lm_head.weight.mul_(4.0)
    model.lm_head.weight[:2] += 8.0 * torch.stack((along, -along))  # what is left decides
    model.embed_tokens.weight.copy_(embeddings)
    return model.eval()


def counting_tokenizer(template: str = TEMPLATE, **changes):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def calibrated(cache: Path, network, model, **changes) -> None:
    """As if this machine had been measured; ``changes`` of the key make it another."""
    drafter = make_drafter(model)
    target = Target(network, drafter.feature_layers, owned=True)
    costs = CostTable({1: 1.0, 64: 1.1}, {1: 0.1}, {1: 0.1})
    key = {**calibration_key(target, drafter), **changes}
    found = Calibration(RouteTable(), costs, target.exact).to_dict()
    text = json.dumps({"key": key, "calibration": found})
    write_atomically(calibration_path(key, cache), text)


class World:
    """A target, its drafter's folder and a calibrated machine, to be broken one at a time."""

    def __init__(self, folder: Path):
        self.tokenizer, self.network = counting_tokenizer(), counting_target()
        self.model = counting_model(self.tokenizer)
        self.cache, self.folder = folder / "cache", folder / "drafter"
        self.save()
        calibrated(self.cache, self.network, self.model)

    def save(self, **changes) -> None:
        """Write the drafter; ``changes`` of its config go into both files."""
        self.model.config = dataclasses.replace(self.model.config, **changes)
        save_checkpoint(self.model, self.folder, dtype=torch.float32)

    def examine(self, folder: Path | None = None, **settings):
        """The findings by name."""
        request = Request(
            folder or self.folder, "counting", lambda: (self.network, self.tokenizer),
            **{"limit": 2, "max_new_tokens": 24, "cache_dir": self.cache, **settings},
        )  # fmt: skip
        return {finding.name: finding for finding in examine(request)}
