"""The parallel heads' loss against loops."""

import torch

from specblock.drafters.objectives.batch import Batch
from specblock.drafters.objectives.losses import Targets
from specblock.drafters.parallel.config import ParallelConfig
from specblock.drafters.parallel.network import ParallelModel
from specblock.drafters.parallel.objective import ParallelObjective, run_trunk

VOCAB, DRAFT, SIZE, LENGTH, HEADS = 30, 5, 16, 9, 3


def make_model():
    torch.manual_seed(0)
    config = ParallelConfig(
        hidden_size=SIZE,
        vocab_size=VOCAB,
        target_layers=6,
        feature_layers=(0, 2, 4),
        intermediate_size=20,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        draft_vocab_size=DRAFT,
        positions=HEADS,
        sink=True,
    )
    model = ParallelModel(config)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    return model


def make_batch(rows=2):
    generator = torch.Generator().manual_seed(1)
    length = LENGTH + HEADS
    probabilities = torch.rand(rows, length, 3, generator=generator)
    noise = torch.rand(rows, length, DRAFT, generator=generator)
    usable = torch.rand(rows, length, generator=generator) < 0.8
    usable[:, LENGTH:] = False
    return Batch(
        torch.randn(rows, LENGTH, 3 * SIZE, generator=generator),
        torch.randint(0, VOCAB, (rows, LENGTH), generator=generator),
        torch.arange(LENGTH).expand(rows, -1) >= 2,
        Targets(noise.topk(3).indices, probabilities, usable),
        torch.arange(rows),
    )


def test_loss_and_tally_are_those_of_loops():
    model, batch = make_model(), make_batch()
    objective = ParallelObjective(HEADS, 0.8)
    assert objective.pad_rows == HEADS
    loss, tally = objective(model, batch, torch.Generator().manual_seed(0))
    trunk = run_trunk(model, batch.features, batch.tokens)
    expected, rows, hits = 0.0, [0] * HEADS, [0] * HEADS
    terms = [[] for _ in range(HEADS)]
    for b in range(len(batch.tokens)):
        for i in range(2, LENGTH):
            on_chain = True
            for k in range(HEADS):
                row = (b, i + k)
                if not batch.targets.usable[row]:
                    continue
                x = trunk[b, i]
                if k:
                    x = x + torch.nn.functional.silu(model.heads[k - 1].weight @ x)
                log_q = model.logits(x)[0].log_softmax(-1)
                ids, p = batch.targets.ids[row], batch.targets.probabilities[row]
                terms[k].append(-(p * log_q[ids]).sum())
                right = int(log_q.argmax()) == int(ids[0])
                rows[k] += on_chain
                hits[k] += on_chain and right
                on_chain = on_chain and right
    expected = sum(0.8**k * torch.stack(terms[k]).mean() for k in range(HEADS))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert tally.rows[0].tolist() == rows
    assert tally.hits[0].tolist() == hits
    assert sum(hits) > 0


def test_every_weight_but_the_embeddings_gets_a_gradient():
    model, batch = make_model(), make_batch()
    ParallelObjective(HEADS, positions=3)(model, batch, torch.Generator())[0].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name
