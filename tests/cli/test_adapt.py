"""``--adapt``, ``specblock adapt`` and ``specblock bench adapt``."""

import json
from pathlib import Path

import pytest
from tests.adaptation.world import config, make_speculator, prompt

import specblock
from specblock.adaptation.replay.report import regret_told


@pytest.fixture
def closed(fake):
    """Notes that the Speculator was closed."""
    calls = []
    fake.close = lambda: calls.append(True)
    return calls


def test_generate_adapts_and_saves(fake, closed, run, tmp_path):
    assert run("generate", "x", "--max-new-tokens", "2").exit_code == 0
    assert not closed
    assert "adapt" not in fake.loads[0][1]
    result = run("generate", "x", "--max-new-tokens", "2", "--adapt", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert fake.loads[1][1]["adapt"].folder == tmp_path
    assert closed == [True]


def test_chat_adapts_and_saves(fake, closed, run, tmp_path):
    result = run("chat", "--max-new-tokens", "2", "--adapt", str(tmp_path), stdin="hello\n/exit\n")
    assert result.exit_code == 0, result.output
    assert fake.loads[0][1]["adapt"].folder == tmp_path
    assert closed == [True]


@pytest.fixture
def tiny(monkeypatch):
    """``specblock.load`` gives a tiny model, adapting as asked."""

    def load(model, **options):
        given = options.get("adapt")
        return make_speculator(None if given is None else config(folder=given.folder))

    monkeypatch.setattr(specblock, "load", load, raising=False)


def test_status_and_export(tiny, run, tmp_path):
    folder, out = tmp_path / "state", tmp_path / "drafter"
    speculator = make_speculator(config(folder=folder, policy="always-heads"))
    for number in range(6):
        speculator.generate(prompt(number), max_new_tokens=8, ignore_eos=True)
    speculator.close()
    result = run("adapt", "status", str(folder))
    assert result.exit_code == 0, result.output
    for word in ("heads", "last-layer", "full", "roll-backs", "6 seen"):
        assert word in result.stdout
    found = json.loads(run("adapt", "status", str(folder), "--json").stdout)
    assert found["arms"]["heads"]["pulls"] >= 1
    result = run("adapt", "export", str(folder), str(out))
    assert result.exit_code == 0, result.output
    assert (out / "model.safetensors").is_file()
    assert f"--drafter {out}" in result.stdout


def test_a_folder_without_adaptation_is_said_in_a_sentence(run, tmp_path):
    for arguments in (["status", str(tmp_path)], ["export", str(tmp_path), "out"]):
        result = run("adapt", *arguments)
        assert result.exit_code == 2
        assert "There is no adaptation" in result.stderr
        assert result.stderr.count("\n") == 1
    assert not Path("out").exists()


def test_bench_adapt_writes_the_report(tiny, run, tmp_path):
    rows = [{"id": f"p{n}", "task": "t", "messages": [{"role": "user", "content": f"w{n + 5}"}]}
            for n in range(4)]  # fmt: skip
    stream, out = tmp_path / "stream.jsonl", tmp_path / "out.json"
    stream.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = tmp_path / "adapt.json"
    settings.write_text(json.dumps({"min_requests": 2, "steps": 1, "mixed_precision": False}))
    arguments = ["--stream", str(stream), "--limit", "3", "--max-new-tokens", "6"]
    result = run(
        "bench",
        "adapt",
        *arguments,
        *("--policies", "never,bandit", "--json", str(out), "--config", str(settings)),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert set(report["policies"]) == {"never", "bandit"}
    assert report["policies"]["bandit"]["requests"] == 3
    assert report["environment"]["packages"]
    assert regret_told(**report["regret"]) in " ".join(result.stdout.split())
    result = run("bench", "adapt", "--policies", "allways-full")
    assert result.exit_code == 2
    assert "did you mean 'always-full'" in result.stderr
