"""Tiny random models of the architectures we support, and drafters that fit them."""

from __future__ import annotations

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.network import SpecBlockModel, vocabulary_map
from specblock.drafters.specblock.propose import SpecBlockDrafter

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 16

ARCHITECTURES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-sliding": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral-sliding": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    ),
    "phi3": (Phi3ForCausalLM, Phi3Config, {"sliding_window": None}),
    "phi3-sliding": (Phi3ForCausalLM, Phi3Config, {"sliding_window": WINDOW}),
}


def make_target(name: str, seed: int = 0, **overrides):
    """A random model with lively logits (larger weights than the default initialisation)."""
    model_class, config_class, extra = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = config_class(**{**SIZES, **extra, **overrides})
    model = model_class._from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


def make_drafter(seed: int = 0, blocks: int = 2, **overrides) -> SpecBlockDrafter:
    """A random SpecBlock drafter for the targets above."""
    torch.manual_seed(seed)
    settings = {
        "hidden_size": SIZES["hidden_size"],
        "vocab_size": VOCABULARY,
        "target_layers": SIZES["num_hidden_layers"],
        "feature_layers": (0, 2, 4),
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "draft_vocab_size": 60,
        **overrides,
    }
    model = SpecBlockModel(SpecBlockConfig(**settings))
    d2t, t2d = vocabulary_map(
        torch.randperm(VOCABULARY)[: settings["draft_vocab_size"]], VOCABULARY
    )
    model.d2t.copy_(d2t)
    model.t2d.copy_(t2d)
    return SpecBlockDrafter(model, blocks=blocks)


class OracleDrafter:
    """Proposes what the target will say, with mistakes: every path through a tree gets walked.

    Reads the continuation from a table instead of features, so that acceptance is deep without
    training anything.
    """

    feature_layers: tuple[int, ...] = (0, 2, 4)
    max_nodes, prompt_pairs = 12, 64

    def __init__(self, continuation: list[int], prompt_length: int, seed: int = 0):
        self.continuation, self.prompt_length = continuation, prompt_length
        self._random = torch.Generator().manual_seed(seed)

    def reset(self, capacity: int) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def prefill(self, features, tokens) -> None:
        self.observe(features, tokens)

    def observe(self, features, tokens) -> None:
        assert len(features) == len(tokens)
        self.pairs.append((features, tokens))

    def drafting(self, root_token, budget, copied=None):
        from specblock.drafters.proposing.proposal import Proposal
        from specblock.tree.draft_tree import DraftTree

        yield from ()
        known = sum(len(tokens) for _, tokens in self.pairs) + 1 - self.prompt_length
        rest = self.continuation[known:]
        tokens, parents, depths = [root_token], [-1], [0]
        node = 0
        for depth in range(1, 5):
            right = rest[depth - 1] if depth <= len(rest) else 5
            wrong = (right + 1 + self._draw(7)) % VOCABULARY
            pair = [right, wrong] if self._draw(2) else [wrong, right]
            if self._draw(5) == 0:
                pair = [wrong]
            places = []
            for token in pair:
                places.append(len(tokens))
                tokens.append(token)
                parents.append(node)
                depths.append(depth)
            node = places[pair.index(right)] if right in pair else places[0]
        count = len(tokens)
        scores = -torch.tensor(depths, dtype=torch.float32)
        log_probs = torch.where(torch.arange(count) > 0, -1.0, 0.0)
        tree = DraftTree(
            torch.tensor(tokens),
            torch.tensor(parents),
            torch.tensor(depths),
            scores,
            log_probs,
            torch.zeros(count, dtype=torch.int64),
        )
        return Proposal.of_tree(tree, budget.model)

    def _draw(self, bound: int) -> int:
        return int(torch.randint(0, bound, (), generator=self._random))


def seeded(seed):
    return torch.Generator().manual_seed(seed)
