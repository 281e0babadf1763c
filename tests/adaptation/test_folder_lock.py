"""A folder belongs to one program at a time, however that ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.adaptation.world import config, make_speculator

from specblock.errors import ConfigError, SpecBlockError

HOLD = """
import sys, time
from pathlib import Path
from specblock.adaptation.folder_lock import hold
lock = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_one_is_refused_until_the_first_is_closed(tmp_path):
    first = make_speculator(config(folder=tmp_path))
    with pytest.raises(ConfigError, match="Another program adapts in .*another folder"):
        make_speculator(config(folder=tmp_path))
    first.close()
    first.close()
    make_speculator(config(folder=tmp_path)).close()


def test_what_cannot_be_resumed_leaves_the_folder_free(tmp_path):
    make_speculator(config(folder=tmp_path)).close()
    with pytest.raises(ConfigError, match="another model or drafter"):
        make_speculator(config(folder=tmp_path), seed=5)
    make_speculator(config(folder=tmp_path)).close()


def test_a_killed_program_holds_nothing(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="Another program"):
            make_speculator(config(folder=tmp_path))
    finally:
        other.kill()
        other.communicate()
    make_speculator(config(folder=tmp_path)).close()


def test_a_folder_that_is_none_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpecBlockError, match="choose another folder"):
        make_speculator(config(folder=tmp_path / "file"))
