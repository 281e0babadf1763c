"""The closed-form start of EAGLE-3 and of the parallel heads."""

import pytest
import torch
from tests.tiny import SIZES, VOCABULARY, make_target

from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.eagle3.objective import Eagle3Objective
from specblock.drafters.eagle3.start import look_at_oneself, middle_of_last_layer
from specblock.drafters.parallel.config import ParallelConfig
from specblock.drafters.parallel.network import ParallelModel
from specblock.drafters.parallel.objective import ParallelObjective
from specblock.drafters.starting.warm_start import warm_start
from specblock.target.architecture.structure import decoder_layers
from specblock.target.architecture.tap import FeatureTap
from specblock.training.data.answers import Answer
from specblock.training.features.reader import FeatureReader, collate

SHAPE = {
    "hidden_size": SIZES["hidden_size"],
    "vocab_size": VOCABULARY,
    "target_layers": SIZES["num_hidden_layers"],
    "feature_layers": (0, 2, 4),
    "intermediate_size": SIZES["intermediate_size"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "draft_vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "feature_norm": True,
}


@pytest.fixture(scope="module")
def target():
    return make_target("llama")


@pytest.fixture(scope="module")
def sequences(target):
    generator = torch.Generator().manual_seed(2)
    answers = []
    for index in range(24):
        ids = torch.randint(3, VOCABULARY, (4,), generator=generator)
        whole = target.generate(
            ids[None], max_new_tokens=40, do_sample=True, eos_token_id=None, top_k=8
        )[0].tolist()
        answers.append(Answer(str(index), whole[:4], whole[4:], False))
    t2d = torch.ones(VOCABULARY, dtype=torch.bool)
    return FeatureReader(target, (0, 2, 4), t2d).read_batch(answers)


def drafter(kind, config):
    torch.manual_seed(0)
    model = kind(config)
    model.t2d.fill_(True)
    return model


def answer_of(sequence) -> Answer:
    ids = [3, *sequence.tokens.tolist()]
    first = 1 + int(sequence.start.int().argmax())
    return Answer("", ids[:first], ids[first:], False)


def loss_of(model, sequences):
    objective = Eagle3Objective(1) if isinstance(model, Eagle3Model) else ParallelObjective(1)
    with torch.no_grad():
        return objective(model, collate(sequences, 4), torch.Generator().manual_seed(0))[0]


def test_the_middle_of_the_last_layer_is_the_targets_own(target):
    ids = torch.randint(3, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(0))
    found = []
    norm = decoder_layers(target)[-1].post_attention_layernorm
    handle = norm.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0][0]))
    tap = FeatureTap(target, (2,))
    with torch.no_grad(), tap:
        target(input_ids=ids)
        handle.remove()
        own = middle_of_last_layer(target, tap.take()[0], 2)
    torch.testing.assert_close(own, found[0], atol=1e-4, rtol=1e-4)


def test_a_start_drafts_better_than_chance_and_than_its_parts(target, sequences):
    fitted, held = sequences[:18], sequences[18:]
    scratch = drafter(Eagle3Model, Eagle3Config(**SHAPE))
    model = drafter(Eagle3Model, Eagle3Config(**SHAPE))
    warm_start(model, target, fitted)
    before, after = loss_of(scratch, held), loss_of(model, held)
    assert after < before - 0.2
    model.midlayer.self_attn.o_proj.weight.data.zero_()
    assert after < loss_of(model, held)


def test_the_heads_look_at_their_own_position():
    """Where the inputs hold the constant exactly; of real features it is an approximation."""
    config = Eagle3Config(**{**SHAPE, "head_dim": 64, "rope_theta": 1e5})
    model = drafter(Eagle3Model, config)
    with torch.no_grad():
        look_at_oneself(model, torch.full((64,), 1 / 64))
        x = torch.ones(200, 64)
        q, k, _ = model.midlayer.self_attn.project(x, *model.rotary(torch.arange(len(x))))
        scores = torch.einsum("qd,kd->qk", q[:, 3], k[:, 1]) / 64**0.5
    seen = torch.ones_like(scores).tril().bool()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).diagonal()
    assert weights.min() > 0.9


def test_parallel_heads_start_from_the_same_layers(target, sequences):
    fitted, held = sequences[:18], sequences[18:]
    config = ParallelConfig(**SHAPE, num_hidden_layers=1, sink=True)
    scratch, model = drafter(ParallelModel, config), drafter(ParallelModel, config)
    warm_start(model, target, fitted)
    assert loss_of(model, held) < loss_of(scratch, held) - 0.2
    assert model.sink.abs().sum() > 0


def test_layers_of_another_form_are_done_without(sequences, target):
    """The middle is then the last layer's output, and the MLP adds nothing."""
    config, said = Eagle3Config(**SHAPE), []
    scratch, model = drafter(Eagle3Model, config), drafter(Eagle3Model, config)
    with torch.no_grad():
        target.get_decoder().layers[-1].mlp.act_fn = torch.nn.GELU()
    reader = FeatureReader(target, (0, 2, 5), torch.ones(VOCABULARY, dtype=torch.bool))
    answers = [answer_of(sequence) for sequence in sequences]
    read = reader.read_batch(answers)
    warm_start(model, target, read[:18], said.append)
    assert "cannot be copied (a copy of layer 5 computes something else)" in said[0]
    assert not model.midlayer.mlp.down_proj.weight.any()
    assert loss_of(model, read[18:]) < loss_of(scratch, read[18:]) - 0.2
