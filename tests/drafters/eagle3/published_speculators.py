"""A synthetic checkpoint in the layout of *speculators*: the authors' network, told otherwise."""

import json

import torch
from safetensors.torch import save_file
from tests.drafters.eagle3.published_eagle3 import (
    DIM,
    DRAFT,
    HIDDEN,
    PUBLISHED,
    VOCAB,
    published_tensors,
)

LAYER = {
    name: value
    for name, value in PUBLISHED.items()
    if name not in ("architectures", "draft_vocab_size")
}
SPECULATORS = {
    "architectures": ["Eagle3DraftModel"],
    "draft_vocab_size": DRAFT,
    "eagle_aux_hidden_state_layer_ids": None,
    "embed_requires_grad": False,
    "has_no_defaults_at_init": False,
    "norm_before_fc": False,
    "norm_before_residual": True,
    "speculators_config": {
        "algorithm": "eagle3",
        "default_proposal_method": "greedy",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
        "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "some/target"},
    },
    "speculators_model_type": "eagle3",
    "speculators_version": "0.3.0",
    "target_hidden_size": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def speculators_tensors(flags=(), *, head_norms=False, own_embeddings=False, dtype=torch.float32):
    """By the authors' names, in the values that ``dtype`` has."""
    generator = torch.Generator().manual_seed(12)
    tensors = published_tensors()
    sizes = {}
    if "norm_before_fc" in flags:
        sizes["input_norm"] = 3 * HIDDEN
    if "fc_norm" in flags:
        sizes |= {f"fc_norm.{i}": HIDDEN for i in range(3)}
    if head_norms:
        sizes |= {f"midlayer.self_attn.{name}_norm": DIM for name in "qk"}
    for name, size in sizes.items():
        tensors[name + ".weight"] = torch.rand(size, generator=generator) + 0.5
    if own_embeddings:
        tensors["embed_tokens.weight"] = torch.randn(VOCAB, HIDDEN, generator=generator)
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def write_speculators(folder, tensors, *, layer=None, shards=0, prefix="", **changes):
    """``shards`` files and an index, or one file."""
    config = {**SPECULATORS, "transformer_layer_config": {**LAYER, **(layer or {})}, **changes}
    config = {key: value for key, value in config.items() if value != "absent"}
    named = {
        prefix + name.replace("midlayer.", "layers.0."): value for name, value in tensors.items()
    }
    named["verifier_norm.weight"] = torch.ones(HIDDEN)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if not shards:
        save_file(named, folder / "model.safetensors")
        return
    places = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(named.items())[shard::shards])
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
