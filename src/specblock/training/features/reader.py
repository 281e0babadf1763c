"""What the frozen target says about a sequence: features for the drafter to read, and targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specblock.drafters.objectives.batch import Batch
from specblock.drafters.objectives.losses import Targets
from specblock.drafters.objectives.sequence import Sequence
from specblock.target.architecture.tap import FeatureTap
from specblock.training.data.answers import Answer


class FeatureReader:
    """Runs the target over answers.

    Args:
        model: the frozen causal LM. feature_layers: outputs of these decoder layers.
        t2d: bool [V], the draft vocabulary. top: how many target probabilities to keep a row.
    """

    def __init__(self, model: nn.Module, feature_layers: tuple[int, ...], t2d: Tensor, top=64):
        t2d = t2d.to(model.device)  # indexed by what the model says there
        self.model, self.t2d, self.top = model, t2d, min(top, int(t2d.sum()))
        self._draft_ids = t2d.nonzero().flatten()
        self._to_draft = t2d.long().cumsum(0) - 1
        self._tap = FeatureTap(model, feature_layers)

    def read(self, answer: Answer) -> Sequence:
        """Features and targets of one answer, on the CPU."""
        return self.read_batch([answer])[0]

    @torch.no_grad()
    def read_batch(self, answers: list[Answer]) -> list[Sequence]:
        """The same for several answers in one forward; best of similar length."""
        whole = [torch.tensor(answer.ids) for answer in answers]
        # right padding: causal attention never looks at it
        ids = nn.utils.rnn.pad_sequence(whole, batch_first=True).to(self.model.device)
        first = min(len(answer.prompt_ids) for answer in answers)
        rows = torch.arange(first, ids.shape[1], device=ids.device)
        with self._tap:
            output = self.model(input_ids=ids, use_cache=False, logits_to_keep=rows)
        features = self._tap.take()
        read = []
        for row, answer in enumerate(answers):
            start, stop = len(answer.prompt_ids) - first, len(answer.ids) - first
            own = features[row, : len(answer.ids) - 1], output.logits[row, start:stop]
            read.append(self._sequence(answer, *own))
        return read

    def _sequence(self, answer: Answer, features: Tensor, logits: Tensor) -> Sequence:
        first, pairs = len(answer.prompt_ids), len(answer.ids) - 1
        draft_ids, probabilities, usable = self._targets(logits)
        if answer.stopped:  # nothing follows the end of the turn
            usable[-1] = False
        target_ids = torch.zeros(pairs, self.top, dtype=torch.int32)
        target_probabilities = torch.zeros(pairs, self.top)
        all_usable = torch.zeros(pairs, dtype=torch.bool)
        target_ids[first - 1 :] = draft_ids.cpu()
        target_probabilities[first - 1 :] = probabilities.cpu()
        all_usable[first - 1 :] = usable.cpu()
        start = torch.arange(pairs) >= first - 1
        tokens = torch.tensor(answer.ids[1:])
        own = features.detach().to("cpu", copy=True)
        return Sequence(own, tokens, start, target_ids, target_probabilities, all_usable)

    def _targets(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top draft ids, their probabilities over the draft vocabulary, and usability, by row."""
        best = logits.max(-1).indices  # argmax, several times as fast on a CPU
        reduced = logits[:, self._draft_ids].float()
        top, ids = reduced.topk(self.top, dim=-1)
        probabilities = (top - reduced.logsumexp(-1, keepdim=True)).exp()
        # rounding may tie: the target's own arg-max comes first wherever it is in the vocabulary
        usable = self.t2d[best]
        own = self._to_draft[best]
        swap = (ids == own[:, None]) & usable[:, None]
        place = swap.float().argmax(-1, keepdim=True)
        moved = ids.gather(-1, torch.zeros_like(place))
        first = torch.where(swap.any(-1, keepdim=True), own[:, None], moved)
        ids = ids.scatter(-1, place, moved).scatter(-1, torch.zeros_like(place), first)
        return ids.int(), probabilities, usable


def collate(sequences: list[Sequence], pad_rows: int) -> Batch:
    """Right-padded batch; ``pad_rows`` unusable target rows follow the longest sequence."""
    longest = max(s.tokens.numel() for s in sequences)

    def stack(name: str, length: int) -> Tensor:
        parts = [getattr(s, name) for s in sequences]
        out = parts[0].new_zeros(len(parts), length, *parts[0].shape[1:])
        for row, part in zip(out, parts, strict=True):
            row[: part.shape[0]] = part
        return out

    targets = Targets(
        stack("target_ids", longest + pad_rows).long(),
        stack("target_probabilities", longest + pad_rows).float(),
        stack("usable", longest + pad_rows),
    )
    return Batch(
        stack("features", longest), stack("tokens", longest), stack("start", longest), targets
    )
