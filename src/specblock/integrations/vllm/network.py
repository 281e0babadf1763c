"""The drafter as a module of vLLM: our network, and layers that claim its pages."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from specblock.budget.survival_file import load_survival
from specblock.drafters.registry import load_model
from specblock.integrations.vllm.engine_config import FOLDER
from specblock.integrations.vllm.pages import Pages
from specblock.integrations.vllm.texts import Texts, drafter_for_chains

__all__ = ["PagedNetwork"]


class PagedNetwork(nn.Module):
    """A layer of vLLM's attention for each of the drafter's, for the room in the pages alone.

    What is computed is computed by our own network: it sees slots of a block, which no paged
    attention can say.
    """

    def __init__(self, *, vllm_config, prefix: str = ""):
        from vllm.model_executor.layers.attention import Attention

        super().__init__()
        drafting = vllm_config.speculative_config.draft_model_config.hf_config
        first = vllm_config.model_config.get_total_num_hidden_layers()
        self.config = drafting
        self.folder = Path(getattr(drafting, FOLDER))
        self.layers = nn.ModuleList(
            Attention(
                drafting.num_attention_heads,
                drafting.head_dim,
                drafting.head_dim**-0.5,
                num_kv_heads=drafting.num_key_value_heads,
                cache_config=vllm_config.cache_config,
                prefix=f"specblock.layers.{first + index}.attn",
            )
            for index in range(drafting.num_hidden_layers)
        )
        self.texts: Texts | None = None

    @property
    def layer_names(self) -> set[str]:
        return {layer.layer_name for layer in self.layers}

    def load(self, target: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        """Our network, with the target's embeddings and head where the drafter has none."""
        rows = self.config.vocab_size  # vLLM pads both
        model = load_model(
            self.folder,
            embeddings=target.model.embed_tokens.weight.detach()[:rows],
            target_head=target.lm_head.weight.detach()[:rows],
            dtype=dtype,
            device=device,
        )
        self.network = model.requires_grad_(False)

    def paged(self) -> Texts:
        """Drafting from the pages, which there are once vLLM has made its cache."""
        if self.texts is None:
            pages = Pages(
                [layer.kv_cache for layer in self.layers],
                self.config.num_key_value_heads,
                self.config.head_dim,
            )
            drafter = drafter_for_chains(self.network)
            self.texts = Texts(drafter, load_survival(self.folder), pages)
        return self.texts

    # what vLLM asks of a model that generates; the proposer uses none of it

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        raise NotImplementedError("the proposer drafts")

    def forward(self, input_ids: Tensor, positions: Tensor, **_: object) -> Tensor:
        raise NotImplementedError("the proposer drafts")

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        raise NotImplementedError("the proposer drafts")
