"""Every way of naming a model loads it, or says in one sentence why not."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from specblock.errors import ModelError
from specblock.target.loading import converted, embedded, zoo
from specblock.target.loading.embedded import SMOLLM2
from tests.target.loading.test_converted import leftovers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Llama with a tokenizer, saved as transformers does."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16])
def test_loads_a_folder(folder, dtype):
    model, tokenizer = zoo.load_model(folder, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("w3 w5")["input_ids"] == [3, 5]


def test_auto_takes_the_checkpoints_dtype(folder):
    assert zoo.load_model(str(folder), dtype="auto")[0].dtype == torch.float32


def one_sentence(error):
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert "Traceback" not in text
    return text


def test_unknown_dtype_and_device(folder):
    with pytest.raises(ModelError, match="dtype must be one of float32"):
        zoo.load_model(folder, dtype="float8")
    with pytest.raises(ModelError, match="'tpu9' is not available"):
        zoo.load_model(folder, device="tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="'cuda' is not available"):
            zoo.load_model(folder, device="cuda")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_folder_is_one_sentence(folder, tmp_path, file):
    copy = shutil.copytree(folder, tmp_path / "copy")
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError) as caught:
        zoo.load_model(copy)
    assert one_sentence(caught.value).startswith(str(copy))


def test_missing_weights_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lack 1 weights, first {name}"):
        zoo.load_model(copy)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        zoo.load_model(tmp_path)


def test_neither_folder_nor_id():
    with pytest.raises(ModelError, match="no file or folder ./no/such/folder"):
        zoo.load_model("./no/such/folder")


class Hub:
    """Stands in for the network: every question is answered with ``error``."""

    def __init__(self, monkeypatch, error):
        import huggingface_hub

        self.timeouts = []

        def model_info(api, name, timeout):
            self.timeouts.append(timeout)
            raise error

        def snapshot_download(name, *, allow_patterns, local_files_only=False):
            assert local_files_only, "nothing is downloaded before the hub has answered"
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def test_no_network_is_one_sentence_and_quick(monkeypatch):
    from huggingface_hub.errors import HTTPError

    hub = Hub(monkeypatch, HTTPError("Name or service not known"))
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        zoo.load_model("someone/some-model")
    one_sentence(caught.value)
    assert hub.timeouts == [zoo.HUB_SECONDS]


def test_an_unknown_model_is_one_sentence(monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # needs a response otherwise
    Hub(monkeypatch, error)
    with pytest.raises(ModelError, match="There is no model someone/none") as caught:
        zoo.load_model("someone/none")
    one_sentence(caught.value)


def test_the_hub_id_of_the_embedded_model_works_without_network(monkeypatch, tmp_path):
    from huggingface_hub.errors import HTTPError

    Hub(monkeypatch, HTTPError("no network"))
    monkeypatch.setattr(zoo, "_installed", lambda _: True)
    monkeypatch.setattr(zoo, "prepare", lambda source, cache_dir: tmp_path / source.name)
    assert zoo.locate_model(SMOLLM2.hub_id, None) == tmp_path / SMOLLM2.name


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "SmolLM2-135M-Instruct"])
def test_names_of_the_embedded_model(monkeypatch, tmp_path, name):
    monkeypatch.setattr(zoo, "prepare", lambda source, cache_dir: tmp_path / source.name)
    assert zoo.locate_model(name, None) == tmp_path / SMOLLM2.name


def installed():
    try:
        embedded.find_gguf(SMOLLM2)
    except ModelError as error:
        return str(error)
    return ""


needs_weights = pytest.mark.skipif(bool(installed()), reason=installed())


def says_paris(model, tokenizer):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**prompt, do_sample=False, max_new_tokens=12)
    answer = out[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert answer[-1] == model.generation_config.eos_token_id == 2


@needs_weights
def test_the_embedded_model_answers():
    model, tokenizer = zoo.load_model()
    assert model.dtype == torch.float32
    assert model.config.num_hidden_layers == 30
    says_paris(model, tokenizer)


@pytest.mark.slow
@needs_weights
def test_the_embedded_model_is_converted_from_scratch(tmp_path, capfd):
    model, tokenizer = zoo.load_model(SMOLLM2.name, cache_dir=tmp_path)
    assert capfd.readouterr().err == "", "no foreign progress bars"
    assert leftovers(tmp_path) == []
    says_paris(model, tokenizer)
    (weights,) = tmp_path.glob("models/*/model.safetensors")
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    assert not converted.is_intact(weights.parent, SMOLLM2.sha256)
