"""Provenance: what made an output, through failures and resumptions."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from specblock.errors import SpecBlockError
from specblock.training import provenance
from specblock.training.provenance import earlier_runs, git_commit, provenance_path, recorded


def test_a_run_tells_what_it_was_made_of(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("data")
    path = provenance_path(out, folder=False)
    assert path == tmp_path / "out.jsonl.provenance.json"
    with recorded(out, "prepare-data", {"limit": 3}, [source, tmp_path / "none"]) as record:
        (running,) = earlier_runs(path)
        assert (running["status"], running["ended"]) == ("running", None)
        out.write_text("x")
        record["counts"] = {"kept": 1}
    (run,) = earlier_runs(path)
    digest = hashlib.sha256(b"data").hexdigest()
    assert run["inputs"] == [{"path": str(source), "bytes": 4, "sha256": digest}]
    assert (run["verb"], run["status"]) == ("prepare-data", "finished")
    assert run["settings"] == {"limit": 3}
    assert run["counts"] == {"kept": 1}
    assert run["started"] <= run["ended"]
    assert set(run["versions"]) >= {"specblock", "torch", "transformers", "python"}
    assert run["versions"]["torch"]
    assert run["machine"]["name"]
    assert run["argv"]


def test_a_resumed_output_has_all_its_runs(tmp_path):
    out = tmp_path / "answers"

    def interrupted():
        with recorded(out, "r", {}, [], folder=True):
            (out / "answers-00000.jsonl").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with recorded(out, "r", {}, [], folder=True):
        pass
    path = out / "provenance.json"
    assert [run["status"] for run in earlier_runs(path)] == [
        "ended by KeyboardInterrupt",
        "finished",
    ]
    path.write_text("{broken")
    with recorded(out, "r", {}, [], folder=True):
        pass
    assert len(json.loads(path.read_text())["runs"]) == 1


@pytest.mark.parametrize("folder", [True, False])
def test_a_failure_without_output_leaves_nothing(folder, tmp_path):
    def fail():
        with recorded(tmp_path / "out", "r", {}, [], folder=folder):
            raise SpecBlockError("no")

    with pytest.raises(SpecBlockError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_folders_are_described_file_by_file(tmp_path):
    for name in ("b", "a", ".lock"):
        (tmp_path / name).write_text(name)
    assert [Path(row["path"]).name for row in provenance.described(tmp_path)] == ["a", "b"]


def test_the_commit_is_that_of_our_own_checkout_or_none(monkeypatch, tmp_path):
    package = tmp_path / "src" / "specblock" / "training"
    package.mkdir(parents=True)
    (package / "provenance.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert git_commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert git_commit() is None, "no commit yet"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    found = git_commit()
    assert len(found["commit"]) == 40
    assert found["changed"] is False
    (package / "more.py").touch()
    assert git_commit()["changed"] is True
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "a" / "b" / "provenance.py"))
    assert git_commit() is None
