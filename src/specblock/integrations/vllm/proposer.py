"""The drafter of vLLM's V1 runner: our trees, of which the best path is handed over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.spec_decode.eagle import EagleProposer

from specblock.integrations.vllm.engine_config import FOLDER
from specblock.integrations.vllm.faults import mend
from specblock.integrations.vllm.network import PagedNetwork
from specblock.integrations.vllm.texts import Step

__all__ = ["Chooser", "SpecBlockProposer"]


class Chooser(EagleProposer):
    """vLLM's own proposer, or ours where the drafter is."""

    def __new__(cls, vllm_config, *_args: Any, **_kwargs: Any):
        config = vllm_config.speculative_config.draft_model_config.hf_config
        ours = cls is Chooser and hasattr(config, FOLDER)
        return super().__new__(SpecBlockProposer if ours else cls)

    def load_model(self, target_model: torch.nn.Module) -> None:
        mend()  # not before: vLLM puts its kernels for this processor in place with the worker
        super().load_model(target_model)


class SpecBlockProposer(Chooser):
    """Drafts for a batch after every step, a partial chunk of a prompt included.

    While scheduling is synchronous every text gets a list of its own length; otherwise vLLM wants
    as many tokens for each, and the missing ones repeat the last.
    """

    def __init__(self, vllm_config, device: torch.device, runner=None):
        super().__init__(vllm_config, device, runner)
        self.runner = runner

    def load_model(self, target_model: torch.nn.Module) -> None:
        mend()
        with set_current_vllm_config(self.vllm_config), set_default_torch_dtype(self.dtype):
            self.model = PagedNetwork(vllm_config=self.vllm_config)
        self.model.load(target_model, self.dtype, self.device)
        self._draft_attn_layer_names = self.model.layer_names

    def dummy_run(self, *_args: Any, **_kwargs: Any) -> None:
        """There is nothing to compile or to capture."""

    @torch.inference_mode()
    def propose(
        self,
        num_speculative_tokens: int,
        target_token_ids: Tensor,
        target_positions: Tensor,
        target_hidden_states: Tensor,
        next_token_ids: Tensor,
        token_indices_to_sample: Tensor | None,
        common_attn_metadata,
        sampling_metadata=None,
        **_unused: Any,
    ) -> list[list[int]] | Tensor:
        starts = common_attn_metadata.query_start_loc_cpu.tolist()
        lasts = [stop - 1 for stop in starts[1:]]
        if token_indices_to_sample is not None:
            lasts = token_indices_to_sample.tolist()  # behind them are rejected drafts
        steps = []
        for row, (first, last) in enumerate(zip(starts, lasts, strict=False)):
            position = int(target_positions[first])
            in_prompt = bool(self.runner.discard_request_mask.np[row])
            following = int(next_token_ids[row])
            if in_prompt:  # vLLM says the prompt's last token here, whatever the chunk
                known = self.runner.input_batch.token_ids_cpu
                following = int(known[row, position + last - first + 1])
            tokens = target_token_ids[first : last + 1].long().roll(-1)
            tokens[-1] = following
            steps.append(
                Step(
                    common_attn_metadata.block_table_tensor[row],
                    position,
                    target_hidden_states[first : last + 1],
                    tokens,
                    drafts=not in_prompt and num_speculative_tokens > 0,
                )
            )
        drafts = self.model.paged().draft(steps, num_speculative_tokens)
        if not self.runner.use_async_scheduling:
            return drafts
        return _even(drafts, next_token_ids, num_speculative_tokens)


def _even(drafts: list[list[int]], newest: Tensor, width: int) -> Tensor:
    """int64 [B, width]: short ones repeat their last token, none at all the text's newest."""
    rows = [
        (own + [own[-1] if own else int(newest[row])] * width)[:width]
        for row, own in enumerate(drafts)
    ]
    return torch.tensor(rows, dtype=torch.int64, device=newest.device).view(len(drafts), width)
