"""A kind of drafter of one's own: what follows a token, whatever stood before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from specblock.drafters.base import FixedBudget
from specblock.drafters.config import FEATURE_CONVENTION, StoredConfig
from specblock.drafters.kind import DrafterKind, Training
from specblock.drafters.layers import RMSNorm
from specblock.drafters.objectives.chain import ChainLoss
from specblock.drafters.proposing.levels import LevelTree
from specblock.drafters.proposing.pairs import PairQueue
from specblock.drafters.shortlist import best_logits


@dataclass(frozen=True)
class BigramConfig(StoredConfig):
    drafter_type: ClassVar[str] = "bigram"
    hidden_size: int
    vocab_size: int
    target_layers: int
    feature_layers: tuple[int, ...]
    draft_vocab_size: int = 8192
    target_lm_head: bool = True  # the head is the target's rows: frozen and not stored
    tokenizer_fingerprint: str = ""
    target_name: str = ""
    feature_convention: str = FEATURE_CONVENTION


class BigramModel(nn.Module):
    def __init__(self, config: BigramConfig):
        super().__init__()
        size, draft, full = config.hidden_size, config.draft_vocab_size, config.vocab_size
        self.config = config
        self.embed_tokens = nn.Embedding(full, size)  # the target's: never stored
        self.follow, self.norm = nn.Linear(size, size), RMSNorm(size, 1e-5)
        self.lm_head = nn.Linear(size, draft, bias=False)
        self.register_buffer("d2t", torch.zeros(draft, dtype=torch.int64))
        self.register_buffer("t2d", torch.arange(full) < draft)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        return x + self.follow(x)  # before the final norm


@dataclass(frozen=True)
class BigramObjective:
    positions: int
    pad_rows: int = 1

    def __call__(self, model, batch, generator):
        own = {"steps": 1, "decay": 1.0, "positions": self.positions, "generator": generator}
        loss = ChainLoss(model, batch, **own)
        loss.first(model(batch.tokens))
        return loss.total()


@dataclass(frozen=True, eq=False)
class Following:
    """A forward of one text. Those of many texts are computed as one."""

    model: BigramModel
    tokens: Tensor  # int64 [n]
    width: int

    @property
    def kind(self):
        return id(self.model), self.width

    @staticmethod
    def compute(forwards: Sequence["Following"]) -> list[tuple[Tensor, Tensor]]:
        model, sizes = forwards[0].model, [len(forward.tokens) for forward in forwards]
        hidden = model.norm(model(torch.cat([forward.tokens for forward in forwards])))
        top, ids, total = best_logits(model.lm_head, hidden, forwards[0].width)
        tokens, log_probs = ids + model.d2t[ids], top - total
        return list(zip(tokens.split(sizes), log_probs.split(sizes), strict=True))


class BigramDrafter(PairQueue):
    def __init__(self, model: BigramModel, *, depth: int = 4, width: int = 6, max_nodes: int = 60):
        self.model, self.depth, self.max_nodes = model.eval(), depth, max_nodes
        self.width = min(width, model.config.draft_vocab_size)
        self.feature_layers = model.config.feature_layers
        self.forget_pairs()

    def reset(self, capacity: int) -> None:
        self.forget_pairs()

    def drafting(self, root_token, budget, copied=None):
        self.forget_pairs()  # the newest token is all that it looks at
        leaves = torch.tensor([root_token], device=self.model.d2t.device)
        tree = LevelTree(*(yield Following(self.model, leaves, self.width)), budget.model)
        for _ in range(self.depth - 1):
            leaves, _ = tree.frontier(self.width)
            after = tree.pool.tokens[leaves]
            tree.add(leaves, *(yield Following(self.model, after, self.width)))
        return tree.proposal(root_token, budget, self.max_nodes, copied)

    def shape_name(self) -> str:
        return f"bigram-{self.model.config.draft_vocab_size}-{self.depth}-{self.width}"

    def measurements(self, features, tokens, pairs, leaves):
        propose = partial(self.propose, int(tokens[-1]), FixedBudget(8, 0))
        return dict.fromkeys(pairs, propose), {}


KIND = DrafterKind(
    BigramConfig,
    BigramModel,
    BigramDrafter,
    ("depth", "width", "max_nodes"),
    Training(
        objective=lambda recipe, config: BigramObjective(recipe.chain_positions),
        first_slot=lambda model, features, tokens: model(tokens),
    ),
)
