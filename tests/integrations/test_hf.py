"""``model.generate(custom_generate=...)`` is transformers' own generate, with a real drafter."""

import pytest
import torch

from specblock import custom_generate
from specblock.drafters.specblock.checkpoint import save_checkpoint
from tests.tiny import make_drafter, make_target

PROMPT = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("drafter") / "d"
    save_checkpoint(make_drafter().model, path, dtype=torch.float32)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_greedy_output_is_generates(folder):
    expected = make_target("llama").generate(PROMPT, max_new_tokens=24, do_sample=False)
    ours = make_target("llama").generate(
        PROMPT, max_new_tokens=24, do_sample=False, custom_generate=custom_generate, drafter=folder
    )
    assert ours.tolist() == expected.tolist()


def test_a_left_padded_batch_is_decoded_row_by_row(folder):
    ids = torch.tensor([[0, 0, 5, 6, 7], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    model = make_target("llama")
    arguments = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    both = model.generate(
        ids, attention_mask=mask, custom_generate=custom_generate, drafter=folder, **arguments
    )
    alone = make_target("llama").generate(ids[:1, 2:], **arguments)
    assert both[0, 2:].tolist() == alone[0].tolist()
    assert both.shape == (2, 15)


def test_sampling_follows_the_global_seed_and_not_the_drafter(folder):
    outputs = []
    for drafter in (folder, None, folder):
        torch.manual_seed(5)
        outputs.append(
            make_target("llama")
            .generate(
                PROMPT,
                max_new_tokens=16,
                do_sample=True,
                temperature=1.2,
                top_k=20,
                custom_generate=custom_generate,
                drafter=drafter,
            )
            .tolist()
        )
    assert outputs[0] == outputs[1] == outputs[2]
