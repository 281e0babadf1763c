"""EAGLE-3's training-time test against loops, and what its tally counts."""

import pytest
import torch

from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.eagle3.objective import Eagle3Objective
from specblock.drafters.objectives.batch import Batch
from specblock.drafters.objectives.losses import Targets

VOCAB, DRAFT, SIZE, LENGTH, STEPS = 30, 5, 16, 9, 4


def make_model(**overrides):
    torch.manual_seed(0)
    config = Eagle3Config(
        **{
            "hidden_size": SIZE,
            "vocab_size": VOCAB,
            "target_layers": 6,
            "feature_layers": (0, 2, 4),
            "intermediate_size": 20,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "draft_vocab_size": DRAFT,
            **overrides,
        }
    )
    model = Eagle3Model(config)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    return model


def make_batch(rows=2, pad=STEPS):
    generator = torch.Generator().manual_seed(4)
    probabilities = torch.rand(rows, LENGTH + pad, 3, generator=generator)
    probabilities = (probabilities / probabilities.sum(-1, keepdim=True)).sort(-1, True).values
    noise = torch.rand(rows, LENGTH + pad, DRAFT, generator=generator)
    usable = torch.rand(rows, LENGTH + pad, generator=generator) < 0.8
    usable[:, LENGTH:] = False
    start = torch.arange(LENGTH).expand(rows, -1) >= 2
    return Batch(
        torch.randn(rows, LENGTH, 3 * SIZE, generator=generator),
        torch.randint(0, VOCAB, (rows, LENGTH), generator=generator),
        start,
        Targets(noise.topk(3).indices, probabilities, usable),
        torch.arange(rows),
    )


def by_loops(model, batch, steps, decay):
    """Loss, and per step (rows on the chain, hits), one pair at a time over a growing prefix."""
    layer, offset = model.midlayer, model.offset
    sums, counts = [0.0] * steps, [0] * steps
    chain_rows, chain_hits = [0] * steps, [0] * steps

    def entry(u, position):
        return layer.self_attn.project(u[None], *model.rotary(torch.tensor([position])))

    for b in range(len(batch.tokens)):
        context, conditions = [], []
        if offset:
            context.append(model.sink_entry())
        for i in range(LENGTH):
            conditions.append(model.condition(batch.features[b, i]))
            u = model.inputs(conditions[-1], batch.tokens[b, i])
            context.append(entry(u, i + offset)[1:])
        for i in range(LENGTH):
            if not batch.start[b, i]:
                continue
            seen = context[: i + offset]
            g, on_chain = conditions[i], True
            for j in range(steps):
                if i + j >= LENGTH:
                    break
                u = model.inputs(g, batch.tokens[b, i + j])
                q, k, v = entry(u, i + j + offset)
                seen = [*seen, (k, v)]
                keys = torch.cat([pair[0] for pair in seen])[:, 0]
                values = torch.cat([pair[1] for pair in seen])[:, 0]
                weights = (q[0] @ keys.t() / 8**0.5).softmax(-1)
                g = layer.finish(g, (weights @ values).flatten())
                row = (b, i + j)
                if not batch.targets.usable[row]:
                    continue
                log_q = model.logits(g)[0].log_softmax(-1)
                ids, p = batch.targets.ids[row], batch.targets.probabilities[row]
                sums[j] = sums[j] - (p * log_q[ids]).sum()
                counts[j] += 1
                right = int(log_q.argmax()) == int(ids[0])
                chain_rows[j] += on_chain
                chain_hits[j] += on_chain and right
                on_chain = on_chain and right
    loss = sum(decay**j * sums[j] / max(1, counts[j]) for j in range(steps))
    return loss, chain_rows, chain_hits


@pytest.mark.parametrize("overrides", [{}, {"sink": True, "feature_norm": True}])
def test_loss_gradient_and_tally_are_those_of_loops(overrides):
    model, batch = make_model(**overrides), make_batch()
    objective = Eagle3Objective(STEPS, 0.8)
    assert objective.pad_rows == STEPS
    loss, tally = objective(model, batch, torch.Generator().manual_seed(0))
    expected, rows, hits = by_loops(model, batch, STEPS, 0.8)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert tally.rows[0].tolist() == rows
    assert tally.hits[0].tolist() == hits
    assert sum(hits) > 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    own = torch.autograd.grad(loss, parameters)
    other = torch.autograd.grad(expected, parameters)
    for one, two in zip(own, other, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_sampled_pairs_leave_step_0_alone():
    model, batch = make_model(), make_batch()
    run = {
        count: Eagle3Objective(STEPS, positions=count)(
            model, batch, torch.Generator().manual_seed(2)
        )[1]
        for count in (0, 3)
    }
    assert run[3].rows[0, 0] == run[0].rows[0, 0]
    assert run[3].live_rows[0, 1] == 6
    assert run[0].live_rows[0, 1] == 14


def test_padding_changes_nothing():
    model, batch = make_model(), make_batch(rows=1)
    longer = Batch(
        torch.nn.functional.pad(batch.features, (0, 0, 0, 4)),
        torch.nn.functional.pad(batch.tokens, (0, 4)),
        torch.nn.functional.pad(batch.start, (0, 4)),
        Targets(
            torch.nn.functional.pad(batch.targets.ids, (0, 0, 0, 4)),
            torch.nn.functional.pad(batch.targets.probabilities, (0, 0, 0, 4)),
            torch.nn.functional.pad(batch.targets.usable, (0, 4)),
        ),
        batch.keys,
    )
    objective = Eagle3Objective(STEPS, positions=4)
    losses = [objective(model, b, torch.Generator().manual_seed(3))[0] for b in (batch, longer)]
    torch.testing.assert_close(*losses)


def test_nothing_to_learn_from_is_a_loss_of_zero():
    model, batch = make_model(), make_batch()
    batch.targets.usable.zero_()
    loss, _ = Eagle3Objective(STEPS)(model, batch, torch.Generator().manual_seed(0))
    assert loss == 0
