"""A drafter that cannot learn: its answers are remembered, and that is all."""

import pytest
import torch
from tests.adaptation.test_memory import LENGTH, serve
from tests.adaptation.world import config, make_speculator, prompt
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target
from typer.testing import CliRunner

from specblock.adaptation.doorway import adapt as start_adapting
from specblock.adaptation.doorway import adaptation_of
from specblock.adaptation.remembering import Remembering
from specblock.adaptation.state import read_status
from specblock.budget.costs import CostTable
from specblock.cli.main import app
from specblock.drafters.base import CopiesController
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.engine.speculator import Speculator
from specblock.errors import CheckpointError, ConfigError
from specblock.target.model import Target


def make(adapt=None, layers: tuple[int, ...] = ()) -> Speculator:
    budget = CopiesController(CostTable({1: 1.0, 64: 1.2}))
    target = Target(make_target("llama"), layers)
    drafter = LookupDrafter(layers)
    speculator = Speculator(target, make_tokenizer(), drafter, budget, copies=TextCopies())
    return speculator if adapt is None else start_adapting(speculator, adapt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("layers", [(), (1,)])
def test_lookup_remembers_and_the_output_stays(temperature, layers):
    settings = {"temperature": temperature, "seed": 5, "max_new_tokens": 40}
    plain = serve(make(), 1, 2, 1, 2, use_drafter=False, **settings)
    speculator = make(config(), layers)
    assert isinstance(speculator.adaptation, Remembering)
    ours = serve(speculator, 1, 2, 1, 2, **settings)
    assert [a.token_ids for a in ours] == [a.token_ids for a in plain]
    assert speculator.adaptation.memory.keys.ready == bool(layers)
    rounds = [a.stats.rounds for a in ours]
    assert sum(rounds[2:]) < sum(rounds[:2]) / 2


def test_it_resumes(tmp_path):
    first = make(config(folder=tmp_path))
    serve(first, 1)
    first.close()
    shown = CliRunner().invoke(app, ["adapt", "status", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "29 tokens of answers" in shown.stdout
    status = read_status(tmp_path)
    assert status["memory_tokens"] == 4 + LENGTH["max_new_tokens"] + 1
    assert status["arms"] == {}
    second = make(config(folder=tmp_path))
    assert len(second.adaptation.memory) == status["memory_tokens"]
    again = second.generate(prompt(1), **LENGTH)
    assert again.stats.rounds < 10
    second.close()
    assert make(config(folder=tmp_path, memory_mib=0)).adaptation.memory is None


def test_a_folder_of_something_else_is_refused(tmp_path):
    make(config(folder=tmp_path)).close()
    with pytest.raises(ConfigError, match="another model or drafter"):
        make_speculator(config(folder=tmp_path))
    learned = tmp_path / "learned"
    make_speculator(config(folder=learned)).close()
    with pytest.raises(ConfigError, match="another model or drafter"):
        make(config(folder=learned))
    with pytest.raises(ConfigError, match="another model"):
        Remembering(50, (), config(folder=tmp_path))
    with pytest.raises(ConfigError, match="another model"):
        Remembering(97, (1,), config(folder=tmp_path))


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="Only a SpecBlock drafter can learn"):
        make(config(policy="always-heads"))
    with pytest.raises(ConfigError, match="Without a drafter"):
        adaptation_of(None, config(), (), 97)


def test_a_memory_of_another_target_or_form_is_refused(tmp_path):
    first = make(config(folder=tmp_path))
    serve(first, 1)
    first.close()
    digest = first.adaptation._identity["target"]
    assert digest
    with pytest.raises(ConfigError, match=r"another model or drafter \(other target\)"):
        Remembering(97, (), config(folder=tmp_path), "another")
    path = sorted(tmp_path.glob("step-*.pt"))[-1]
    for value in ({}, [], "x", {"identity": 5, "memory": None}, {"identity": {}}):
        torch.save(value, path)
        with pytest.raises((CheckpointError, ConfigError)):
            Remembering(97, (), config(folder=tmp_path), digest)
