"""Features on disk: what comes back, what is reused, what is refused."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tests.tiny import VOCABULARY, make_target, seeded

from specblock.drafters.specblock.network import vocabulary_map
from specblock.errors import SpecBlockError
from specblock.training.data.answers import Answer
from specblock.training.features import store
from specblock.training.features.corpus import Kept, Online, read_all
from specblock.training.features.reader import FeatureReader
from specblock.training.features.store import store_features, stored_bytes

LAYERS, WIDTH = (0, 2, 4), 96


@pytest.fixture(scope="module")
def reader():
    _, t2d = vocabulary_map(torch.arange(60), VOCABULARY)
    return FeatureReader(make_target("llama"), LAYERS, t2d, top=16)


@pytest.fixture
def answers():
    generator = seeded(1)
    made = []
    for index in range(7):
        ids = torch.randint(3, VOCABULARY, (4 + index + 9,), generator=generator).tolist()
        made.append(Answer(str(index), ids[: 4 + index], ids[4 + index :], index % 2 == 0))
    return made


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_ANSWERS", 3)


def stored(reader, answers, folder, report=lambda line: None):
    return store_features(
        reader, answers, folder, layers=LAYERS, feature_width=WIDTH, report=report
    )


def test_what_comes_back_is_what_the_target_said(reader, answers, tmp_path):
    corpus = stored(reader, answers, tmp_path)
    fresh = read_all(reader, answers)
    assert corpus.sizes == Kept(fresh).sizes == Online(reader, answers).sizes
    for one, other in zip(corpus.read(range(7)), fresh, strict=True):
        assert one.features.dtype == torch.bfloat16
        torch.testing.assert_close(one.features.float(), other.features, atol=1e-4, rtol=1e-2)
        for name in ("tokens", "start", "target_ids", "usable"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
            assert getattr(one, name).dtype == getattr(other, name).dtype
        torch.testing.assert_close(
            one.target_probabilities, other.target_probabilities, atol=1e-6, rtol=1e-3
        )
    assert torch.equal(corpus.read([5])[0].tokens, fresh[5].tokens)


def test_the_size_is_said_before_it_is_written(reader, answers, tmp_path):
    said = []
    stored(reader, answers, tmp_path, said.append)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    said_size = stored_bytes(answers, WIDTH, 60, 16)
    assert said_size <= size <= said_size + 4096 * 3  # headers
    assert said[0].startswith("storing features:")
    assert sum("shards" in line for line in said) == 3


def test_whole_shards_are_not_made_again(reader, answers, tmp_path):
    stored(reader, answers, tmp_path)
    middle = tmp_path / "features-00001.safetensors"
    content = middle.read_bytes()
    middle.write_bytes(content[: len(content) // 2])  # what a full disk leaves
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    stored(reader, answers, tmp_path)
    assert middle.read_bytes() == content
    assert [path for path in times if path.stat().st_mtime_ns != times[path]] == [middle]


@pytest.mark.parametrize("what", ["answers", "target", "vocabulary", "layers"])
def test_features_of_something_else_are_refused(reader, answers, tmp_path, what):
    stored(reader, answers, tmp_path)
    model, t2d, layers = reader.model, reader.t2d, LAYERS
    if what == "answers":
        answers = [dataclasses.replace(answers[0], stopped=False), *answers[1:]]
    if what == "target":
        model = make_target("llama", seed=1)
    if what == "vocabulary":
        _, t2d = vocabulary_map(torch.arange(1, 61), VOCABULARY)
    if what == "layers":
        layers = (0, 1, 4)
    other = FeatureReader(model, layers, t2d, top=16)
    with pytest.raises(SpecBlockError, match="name another folder"):
        store_features(other, answers, tmp_path, layers=layers, feature_width=WIDTH)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    reader, answers, tmp_path, monkeypatch
):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SpecBlockError, match="fewer answers"):
        stored(reader, answers, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_answers_of_similar_length_share_a_forward(reader, answers, tmp_path, monkeypatch):
    """In a batch of different lengths the padding costs more than anything else."""
    whole, lengths = reader.read_batch, []

    def watched(batch):
        lengths.extend(len(answer.ids) for answer in batch)
        return whole(batch)

    monkeypatch.setattr(reader, "read_batch", watched)
    monkeypatch.setattr(store, "SHARD_ANSWERS", 7)
    mixed = [answers[i] for i in (3, 0, 6, 1, 5, 2, 4)]
    corpus = store_features(reader, mixed, tmp_path, layers=LAYERS, feature_width=WIDTH, batch=2)
    assert lengths == sorted(len(answer.ids) for answer in mixed)
    for read, answer in zip(corpus.read(range(7)), mixed, strict=True):
        assert torch.equal(read.tokens, torch.tensor(answer.ids[1:]))


def test_several_processes_make_a_share_each(reader, answers, tmp_path):
    places = {"layers": LAYERS, "feature_width": WIDTH}
    first = store_features(reader, answers, tmp_path / "shared", **places, part=(0, 2))
    made = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert made == ["features-00000.safetensors", "features-00002.safetensors"]
    second = store_features(reader, answers, tmp_path / "shared", **places, part=(1, 2))
    whole = stored(reader, answers, tmp_path / "whole")
    for corpus in (first, second):
        assert corpus.sizes == whole.sizes
        for one, other in zip(corpus.read(range(7)), whole.read(range(7)), strict=True):
            assert torch.equal(one.features, other.features)
            assert torch.equal(one.target_ids, other.target_ids)
