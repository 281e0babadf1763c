"""Every family that decodes trees gets a drafter: trained two steps, it decodes losslessly."""

import pytest
from tests import families
from tests.engine.reference import generate
from tests.engine.test_lossless import assert_same, prompt, run
from tests.engine.test_speculator import make_tokenizer
from tests.training.toy import write_answers

from specblock.engine.loading import load_drafter
from specblock.target.model import Target
from specblock.training.loop.trainer import TrainConfig
from specblock.training.pipeline import train_drafter
from specblock.training.recipe import DrafterRecipe
from specblock.tree.sampling import SamplingParams

LENGTH, GREEDY = 24, SamplingParams()
# one of each kind of obstacle and of loan; the others are slow together
USUAL = {"llama", "granite", "phi3", "gemma3", "olmo2", "gpt2", "gpt_neox", "ctrl", "glm"}


def recipe(kind: str) -> DrafterRecipe:
    loop = TrainConfig(epochs=1, batch_sequences=4, warmup_steps=1, mixed_precision=False)
    return DrafterRecipe(kind, draft_vocab_size=60, slot_rank=4, held_out=2, train=loop)


def trained(case: str, kind: str, folder):
    network, tokenizer, said = families.make(case), make_tokenizer(), []
    if network is None:
        pytest.skip(f"this transformers has no {case}")
    write_answers(folder / "answers.jsonl", count=10)
    train_drafter(
        network, tokenizer, folder / "answers.jsonl", folder / "drafter", recipe(kind),
        report=said.append,
    )  # fmt: skip
    assert sum("copies of" in line or "as the identity" in line for line in said) == 1
    return load_drafter(folder / "drafter", network, tokenizer)


def decodes_losslessly(case: str, drafter) -> None:
    tokens = prompt()
    expected = generate(families.make(case), tokens, GREEDY, LENGTH)
    target = Target(families.make(case), drafter.feature_layers, prefill_chunk=4)
    ours, stats = run(target, drafter, GREEDY, tokens, length=LENGTH)
    assert stats.drafted_nodes > 0
    assert_same(target, ours, expected, tokens, GREEDY)


@pytest.mark.parametrize(
    "case",
    [case if case in USUAL else pytest.param(case, marks=pytest.mark.slow)
     for case in families.CASES],
)  # fmt: skip
def test_a_trained_drafter_leaves_the_output_alone(case, tmp_path):
    decodes_losslessly(case, trained(case, "specblock", tmp_path))


@pytest.mark.parametrize("case", ["gemma3", "gpt_neox", "phi3"])
@pytest.mark.parametrize("kind", ["eagle3", "parallel"])
def test_so_do_the_other_kinds(case, kind, tmp_path):
    decodes_losslessly(case, trained(case, kind, tmp_path))
