"""A tiny target in a folder, with its tokenizer, and EAGLE-3 drafters for it."""

from dataclasses import replace

import torch

from specblock.drafters.checkpoint import save_checkpoint
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.fingerprint import tokenizer_fingerprint
from specblock.drafters.specblock.network import vocabulary_map
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import SIZES, VOCABULARY, make_target

DRAFT = 40


def save_target(folder, name="qwen3", **overrides):
    """A random model of 10 layers with random weights in transformers' layout; its folder."""
    model = make_target(name, **{"num_hidden_layers": 10, **overrides})
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def eagle3_config(target, **options):
    tokenizer = make_tokenizer()
    plain = Eagle3Config(
        hidden_size=SIZES["hidden_size"],
        vocab_size=VOCABULARY,
        target_layers=10,
        feature_layers=(1, 4, 6),
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        draft_vocab_size=DRAFT,
        rope_theta=700.0,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        target_name=str(target),
    )
    return replace(plain, **options)


def save_drafter(folder, target, **options):
    """A random EAGLE-3 drafter of a target's folder, in our layout; its network."""
    torch.manual_seed(3)
    model = Eagle3Model(eagle3_config(target, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    chosen = torch.randperm(VOCABULARY)[:DRAFT]
    for name, value in zip(("d2t", "t2d"), vocabulary_map(chosen, VOCABULARY), strict=True):
        getattr(model, name).copy_(value)
    save_checkpoint(model, folder, dtype=torch.float32)
    return model.eval()
