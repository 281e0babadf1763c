"""A GGUF file gives the model that it was made from, or is refused in one sentence."""

import math
import shutil

import gguf
import numpy as np
import pytest
import torch
import transformers as hf

from specblock.errors import ModelError, SpecBlockError
from specblock.target.loading import zoo
from tests.target.loading.gguf_files import VOCABULARY, spread, write_gguf

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 261,
    "pad_token_id": None,
}
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256,
    "bos_token_id": None, "eos_token_id": 261,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16}
ROPE = {"rope_theta": 500.0, "rope_type": "default"}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e6, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 1.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 32, "attention_factor": 1.25,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
GEMMA_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 9000.0},
}
BASE = {"rope.freq_base": 500.0}


def llama3_factors():
    """The factors that llama.cpp's converter writes for ``LLAMA3`` and heads of 8."""
    factors = []
    for pair in range(4):
        wave = 2 * math.pi * 1e6 ** (2 * pair / 8)
        if wave < 8192 / 4:
            factors.append(1.0)
        elif wave > 8192:
            factors.append(8.0)
        else:
            smooth = (8192 / wave - 1) / 3
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    assert sorted({1.0, 8.0} & set(factors)) == [1.0, 8.0]
    return np.array(factors, np.float32)


def llama(**settings):
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **settings))


# what it is -> (architecture, the model, what the converter would say beyond the plain entries,
# further tensors)
CASES = {
    "llama": lambda: ("llama", llama(rope_parameters=ROPE), BASE, None),
    "llama with own widths": lambda: (
        "llama", llama(head_dim=16), {"attention.key_length": 16, "rope.dimension_count": 16}, None,
    ),
    "llama, tied": lambda: ("llama", llama(tie_word_embeddings=True), {}, None),
    "llama 3.1": lambda: (
        "llama", llama(rope_parameters=LLAMA3), {"rope.freq_base": 1e6},
        {"rope_freqs.weight": llama3_factors()},
    ),
    "mistral with a window": lambda: (
        "llama",
        hf.MistralForCausalLM(hf.MistralConfig(**SIZES, sliding_window=20, rope_parameters=ROPE)),
        {**BASE, "attention.sliding_window": 20, "rope.dimension_count": 8}, None,
    ),
    "qwen2": lambda: ("qwen2", hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES)), {}, None),
    "qwen2 with yarn": lambda: (
        "qwen2", hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, rope_parameters=YARN)),
        {**BASE, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
         "rope.scaling.original_context_length": 64}, None,
    ),
    "qwen3 with wide heads": lambda: (
        "qwen3", hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, head_dim=24)), {}, None,
    ),
    "qwen3 moe": lambda: (
        "qwen3moe",
        hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**SIZES, **MOE, norm_topk_prob=True)),
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24}, None,
    ),
    "gemma2": lambda: (
        "gemma2",
        hf.Gemma2ForCausalLM(hf.Gemma2Config(**SIZES, head_dim=16, sliding_window=20,
            query_pre_attn_scalar=16, attn_logit_softcapping=5.0, final_logit_softcapping=3.0)),
        {"attention.sliding_window": 20, "attn_logit_softcapping": 5.0,
         "final_logit_softcapping": 3.0}, None,
    ),
    "gemma3, stretched": lambda: (
        "gemma3",
        hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 7}, head_dim=16,
            sliding_window=20, query_pre_attn_scalar=16, rope_parameters=GEMMA_ROPE)),
        {"attention.sliding_window": 20, "rope.freq_base": 9000.0, "rope.freq_base_swa": 300.0,
         "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, None,
    ),
    "phi3 with a window and half-turned heads": lambda: (
        "phi3",
        hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, sliding_window=20,
            rope_parameters={**ROPE, "partial_rotary_factor": 0.5})),
        {**BASE, "attention.sliding_window": 20, "rope.dimension_count": 4}, None,
    ),
    "phi3 for long texts": lambda: (
        "phi3",
        hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, rope_parameters=LONG,
            original_max_position_embeddings=32)),
        {**BASE, "rope.dimension_count": 8, "rope.scaling.original_context_length": 32,
         "rope.scaling.attn_factor": 1.25},
        {"rope_factors_short.weight": np.array(LONG["short_factor"], np.float32),
         "rope_factors_long.weight": np.array(LONG["long_factor"], np.float32)},
    ),
    "starcoder2": lambda: (
        "starcoder2", hf.Starcoder2ForCausalLM(hf.Starcoder2Config(**SIZES, rope_parameters=ROPE)),
        BASE, None,
    ),
    "gpt2": lambda: ("gpt2", hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), {}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_model_is_the_one_that_the_file_was_made_from(case, tmp_path):
    torch.manual_seed(0)
    architecture, original, entries, extra = CASES[case]()
    spread(original)
    path = write_gguf(
        tmp_path / "Tiny Model.gguf", original, architecture, entries=entries, extra=extra
    )
    model, tokenizer = zoo.load_model(path, cache_dir=tmp_path / "cache")
    ids = torch.randint(0, 256, (1, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = original(ids).logits, model(ids).logits
    assert torch.allclose(expected, found, atol=2e-4 * expected.abs().max().item())
    words = tokenizer("then and the end")["input_ids"]
    assert tokenizer.decode(words, skip_special_tokens=True).strip() == "then and the end"
    assert len(words) < len("then and the end")  # merges are applied


def tiny(path, **kind):
    return write_gguf(path, spread(llama(rope_parameters=ROPE)), "llama", entries=BASE, **kind)


def test_quantised_weights_are_those_that_gguf_unpacks(tmp_path):
    path = tiny(tmp_path / "q8.gguf", quantize=gguf.GGMLQuantizationType.Q8_0)
    model, _ = zoo.load_model(path, cache_dir=tmp_path / "cache")
    stored = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, expected)


def test_a_file_is_converted_once_and_its_copy_and_folder_not_again(tmp_path, monkeypatch):
    from specblock.target.loading import gguf as module

    (tmp_path / "m").mkdir()
    path, cache = tiny(tmp_path / "m" / "a.gguf"), tmp_path / "cache"
    first = zoo.locate_model(str(path), cache)
    monkeypatch.setattr(module, "convert_gguf", lambda *_a, **_k: 1 / 0)  # no second time
    assert zoo.locate_model(str(path), cache) == first
    assert zoo.locate_model(str(path.parent), cache) == first
    copy = shutil.copy(path, tmp_path / "a.gguf")
    assert zoo.locate_model(str(copy), cache) == first
    monkeypatch.setattr(module, "sha256_of", None)  # nor is the file read again
    assert zoo.locate_model(str(path), cache) == first


def test_a_changed_file_of_the_same_name_is_another_model(tmp_path):
    path, cache = tmp_path / "a.gguf", tmp_path / "cache"
    first = zoo.locate_model(str(tiny(path)), cache)
    write_gguf(path, spread(llama(rope_parameters=ROPE), seed=1), "llama", entries=BASE)
    assert zoo.locate_model(str(path), cache) != first


def test_answers_end_where_the_chat_template_ends_them(tmp_path):
    model, tokenizer = zoo.load_model(tiny(tmp_path / "a.gguf"), cache_dir=tmp_path)
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert model.generation_config.eos_token_id == ends
    turns = [{"role": "user", "content": "and"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n"


def refused(path, words, cache):
    with pytest.raises(ModelError, match=words) as caught:
        zoo.load_model(path, cache_dir=cache)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert not list((cache / "models").glob("*.tmp-*"))


@pytest.mark.parametrize("kept", [3, 40, 2000, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    whole = tiny(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: kept if kept > 1 else int(kept * len(whole))])
    refused(path, "not a GGUF" if kept == 3 else "cut short", tmp_path / "cache")


def test_files_of_other_kinds_are_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("nothing to see")
    refused(text, "not a GGUF file", tmp_path / "cache")
    refused(tiny(tmp_path / "b.gguf", words=False), "no tokenizer", tmp_path / "cache")
    writer = gguf.GGUFWriter(tmp_path / "clip.gguf", "clip")
    writer.add_type("mmproj")
    writer.add_tensor("v.patch_embd.weight", np.zeros((2, 2), np.float32))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    refused(tmp_path / "clip.gguf", "no language model", tmp_path / "cache")


def test_an_architecture_that_no_test_holds_is_refused_by_name(tmp_path):
    falcon = tiny(tmp_path / "a.gguf").read_bytes().replace(b"llama.", b"lamma.")
    path = tmp_path / "lamma.gguf"
    path.write_bytes(falcon.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lamma"))
    refused(path, r"architecture 'lamma'.* \(it reads gemma2", tmp_path / "cache")


@pytest.mark.parametrize(
    ("entries", "extra", "words"),
    [
        ({"expert_count": 8}, None, "llama.expert_count = 8"),
        ({"attention.value_length": 4}, None, "llama.attention.value_length = 4"),
        ({"logit_scale": 0.5}, None, "llama.logit_scale"),
        ({"rope.dimension_count": 4}, None, "rotates 50% of each head"),
        ({"rope.scaling.type": "su"}, None, "stretches its positions"),
        ({"rope.scaling.attn_factor": 2.0}, None, "scales attention"),
        ({"rope.freq_base_swa": 7.0}, None, "two rope bases"),
        ({}, {"rope_freqs.weight": np.array([1, 2, 3, 9])}, "factors of its own"),
        ({}, {"blk.0.attn_q.bias": np.ones(32)}, "numbers, but transformers' llama has room"),
    ],
)
def test_what_transformers_cannot_be_told_is_refused(tmp_path, entries, extra, words):
    path = write_gguf(
        tmp_path / "a.gguf", spread(llama(rope_parameters=ROPE)), "llama",
        entries={**BASE, **entries}, extra=extra,
    )  # fmt: skip
    refused(path, words, tmp_path / "cache")


def test_folders_without_one_file_are_refused(tmp_path):
    refused(tmp_path, "no config.json and no GGUF", tmp_path / "cache")
    tiny(tmp_path / "a.gguf")
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    refused(tmp_path, "holds 2 GGUF files: name one, such as .*a.gguf", tmp_path / "cache")


def test_a_part_of_several_files_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a-00001-of-00002.gguf", "llama")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    refused(tmp_path / "a-00001-of-00002.gguf", "one of 2 parts", tmp_path / "cache")


def test_too_little_space_is_noticed_before_converting(tmp_path, monkeypatch):
    path = tiny(tmp_path / "a.gguf")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(SpecBlockError, match="disk is full"):
        zoo.load_model(path, cache_dir=tmp_path / "cache")
