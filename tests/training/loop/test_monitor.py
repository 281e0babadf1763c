"""Tables that can be cut back, and dashboards that may be missing."""

import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tests.training.toy import rows

from specblock.drafters.objectives.batch import Tally, summary
from specblock.errors import ConfigError
from specblock.training.loop import monitor
from specblock.training.loop.monitor import Monitor, Table, columns


def test_a_table_is_cut_back_to_where_a_run_goes_on(tmp_path):
    table = Table(tmp_path / "log.csv")
    table.append({"step": 1, "loss": 2.0})
    kept = table.length
    table.append({"step": 2, "loss": None})
    table.cut(kept)
    table.append({"step": 2, "loss": 1.0})
    assert table.rows() == [{"step": "1", "loss": "2.0"}, {"step": "2", "loss": "1.0"}]
    table.cut(0)
    assert table.rows() == []
    table.append({"step": 1, "loss": 3.0})
    with pytest.raises(ValueError, match="other"):
        table.append({"step": 1, "other": 2})


def test_columns_are_the_same_whatever_there_was():
    empty, full = Tally.empty(2, 3), Tally.empty(2, 3)
    full.rows += 4
    full.hits += 1
    full.loss += 6
    full.confusion[2, 1] = 3
    assert list(columns(empty)) == list(columns(full))
    assert columns(empty)["accuracy_b2s1"] is None
    assert columns(full)["accuracy_b2s1"] == 0.25
    assert columns(full)["loss_b1s0"] == 1.5
    assert columns(full)["rank_2_as_1"] == 3
    assert summary(empty) == {}
    twice = Tally.total([full, full])
    assert torch.equal(twice.rows, 2 * full.rows)
    assert twice.confusion[2, 1] == 6


def test_a_fresh_run_does_not_append_to_a_lost_ones_table(tmp_path):
    for _ in range(2):
        watch = Monitor(tmp_path)
        watch.start(0, {})
        watch.write("log", {"step": 1, "loss": 1.0})
    assert len(rows(tmp_path / "log.csv")) == 1
    assert watch.lengths() == {"log": (tmp_path / "log.csv").stat().st_size, "eval": 0}


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_dashboard_is_a_sentence(tmp_path, monkeypatch, package):
    monkeypatch.setattr(monitor, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"{package} is not installed"):
        Monitor(tmp_path, **{package: True})
    Monitor(tmp_path)


def test_rows_go_to_the_dashboards_too(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(monitor, "find_spec", lambda name: True)
    monkeypatch.setattr(
        monitor,
        "_tensorboard_sink",
        lambda folder, step: lambda name, row: sent.append((name, row)),
    )
    watch = Monitor(tmp_path, tensorboard=True)
    watch.start(3, {})
    watch.write("eval", {"step": 4, "tau": 2.0})
    assert sent == [("eval", {"step": 4, "tau": 2.0})]


def test_the_curve_needs_matplotlib_and_says_so(tmp_path, caplog):
    watch = Monitor(tmp_path)
    watch.start(0, {})
    for step in range(3):
        row = {"step": step, "answer_tokens": 100 * step, "tau": 1.0 + step, "accuracy_b1s0": 0.1}
        watch.write("eval", row)
    with caplog.at_level("INFO", logger="specblock"):
        watch.draw()
    drawn = (tmp_path / "curve.png").exists()
    assert drawn == (find_spec("matplotlib") is not None)
    assert drawn or "viz" in caplog.text


class Wandb(ModuleType):
    """Weights & Biases as far as it is used; ``faulty`` names the call that fails."""

    def __init__(self, faulty=None):
        super().__init__("wandb")
        self.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.rows, self.faulty, self.started = [], faulty, {}

    def login(self):
        self._fail("login")

    def init(self, **options):
        self._fail("init")
        self.started = options
        return SimpleNamespace(log=lambda row, step: self.rows.append((step, row)))

    def _fail(self, call):
        if call == self.faulty:
            raise self.errors.Error("No API key configured.")


def test_weights_and_biases_get_numbers_by_step(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(monitor, "find_spec", lambda name: True)
    watch = Monitor(tmp_path, wandb=True)
    watch.start(3, {})
    watch.write("log", {"step": 4, "loss": 2.0, "note": "text"})
    assert wandb.rows == [(4, {"log/step": 4, "log/loss": 2.0})]
    assert wandb.started["resume"] == "allow", "the same folder goes on in the same run"


@pytest.mark.parametrize("faulty", ["login", "init"])
def test_weights_and_biases_without_a_key_are_a_sentence(tmp_path, monkeypatch, faulty):
    monkeypatch.setitem(sys.modules, "wandb", Wandb(faulty))
    monkeypatch.setattr(monitor, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match=r"No API key configured\); log in with `wandb login`"):
        Monitor(tmp_path, wandb=True).start(0, {})


def test_a_table_that_is_another_one_is_cut_at_a_whole_row(tmp_path):
    table = Table(tmp_path / "eval.csv")
    for step in range(1, 4):
        table.append({"step": step, "tau": 1.25})
    for length in range(table.length):
        text = (tmp_path / "eval.csv").read_bytes()
        copy = Table(tmp_path / "copy.csv")
        copy.path.write_bytes(text)
        copy.cut(length)
        assert copy.length <= length
        copy.append({"step": 9, "tau": 2.0})
        assert copy.rows()[-1] == {"step": "9", "tau": "2.0"}
