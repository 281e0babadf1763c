import pytest
from typer.testing import CliRunner

from specblock.cli.main import app


@pytest.fixture
def run():
    """Run the command line with arguments."""
    return lambda *arguments: CliRunner().invoke(app, list(arguments))
