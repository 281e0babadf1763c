import pytest
from typer.testing import CliRunner

import specblock
from fake_speculator import FakeSpeculator
from specblock.cli.main import app


@pytest.fixture
def fake(monkeypatch):
    """The Speculator that ``specblock.load`` returns; ``loads`` keeps how it was asked for."""
    speculator = FakeSpeculator()
    speculator.loads = []

    def load(model, **options):
        options.pop("on_step")("loading")
        speculator.loads.append((model, options))
        if options["drafter"] is None:
            speculator.drafter = None
        return speculator

    monkeypatch.setattr(specblock, "load", load, raising=False)
    return speculator


@pytest.fixture
def run():
    """Run the command line with arguments and piped input."""

    def invoke(*arguments, stdin=""):
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return invoke
