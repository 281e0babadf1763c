"""No warning reaches a user: programs of their own, in which each one is an error."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.tiny import make_target
from tests.training.data.test_chat_mask import chat_tokenizer

ROOT = Path(__file__).parent.parent
DOORWAY = """
import sys, torch, specblock
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = AutoTokenizer.from_pretrained(sys.argv[1])("question 1", return_tensors="pt")["input_ids"]
torch.manual_seed(0)
for settings in ({"do_sample": False}, {"do_sample": True, "temperature": 0.8, "top_k": 20}):
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8,
                           custom_generate=specblock.custom_generate, drafter=None, **settings)
    assert found.shape[1] > ids.shape[1]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny target on disk with a tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("target")
    tokenizer = chat_tokenizer()
    model = make_target("llama", vocab_size=len(tokenizer), num_hidden_layers=2)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def quietly(pytestconfig, tmp_path):
    """Run Python with the suite's own list of warnings, and find nothing that looks like one."""

    def run(*arguments):
        listed = [part for line in pytestconfig.getini("filterwarnings") for part in ("-W", line)]
        done = subprocess.run(
            [sys.executable, *listed, *arguments],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "src"),
                "XDG_CACHE_HOME": str(tmp_path),
            },
        )
        assert done.returncode == 0, done.stderr
        assert not re.search("warn|deprecat", done.stderr, re.IGNORECASE), done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("settings", ["--drafter none", "--drafter lookup --temperature 0.8"])
def test_generate(quietly, folder, settings):
    arguments = ["--model", str(folder), "--max-new-tokens", "8", *settings.split()]
    assert quietly("-m", "specblock", "generate", "question 1", *arguments)


def test_the_doorway(quietly, folder):
    quietly("-c", DOORWAY, str(folder))


@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, UserWarning])
def test_a_warning_is_an_error_here_and_in_such_a_program(quietly, category):
    with pytest.raises(category):
        warnings.warn("of somebody else", category, stacklevel=1)
    with pytest.raises(AssertionError, match="of somebody else"):
        quietly("-c", f"import warnings; warnings.warn('of somebody else', {category.__name__})")
