"""A tiny Qwen3 with random weights whose drafters were trained on its own answers."""

import json
from types import SimpleNamespace

import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import VOCABULARY, make_target

from specblock.training.data.prompts import Prompt
from specblock.training.data.regenerate import RegenerateConfig, regenerate
from specblock.training.loop.trainer import TrainConfig
from specblock.training.pipeline import train_drafter
from specblock.training.recipe import DrafterRecipe

# heads of 32, the smallest that vLLM's attention on a CPU has
SHAPE = {"num_hidden_layers": 10, "hidden_size": 64, "head_dim": 32, "max_position_embeddings": 512}
ENGINES = {"kind": "eagle3", "for_engines": True, "sink": False, "feature_norm": False}


def make_world(home):
    """``target``, ``eagle3`` and ``specblock`` are folders, ``model`` the network."""
    model, tokenizer, target = make_target("qwen3", **SHAPE), make_tokenizer(), home / "tiny-qwen3"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    answers = home / "answers.jsonl"
    config = RegenerateConfig(max_new_tokens=48, temperatures=((0.0, 0.5), (1.0, 0.5)))
    regenerate(model, prompts(96), answers, frozenset([2]), config)
    for name, options in (("eagle3", ENGINES), ("specblock", {"kind": "specblock"})):
        steps = TrainConfig(epochs=6, batch_sequences=8, warmup_steps=4, lr=1e-3)
        recipe = DrafterRecipe(
            draft_vocab_size=80, slot_rank=8, held_out=4, simulated=0, train=steps, **options
        )
        train_drafter(model, tokenizer, answers, home / name, recipe, name=str(target))
    return SimpleNamespace(
        home=home, model=model, target=target, eagle3=home / "eagle3", specblock=home / "specblock"
    )


def prompts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        length = 4 + index % 9
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        made.append(Prompt(f"p{index}", [], ids))
    return made


def unseen(count):
    """Token ids of prompts that nothing was trained on."""
    return [prompt.ids for prompt in prompts(count, seed=99)]


def config_of(folder):
    return json.loads((folder / "config.json").read_text())
