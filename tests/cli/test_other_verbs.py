"""Demo, bench, calibrate, convert, and the program itself."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from specblock.bench import load_prompts
from specblock.cli.decoding.side_by_side import LiveDisplay
from specblock.data import DEMO_PROMPTS, OWN_PROMPTS

VERBS = (
    ("generate",), ("chat",), ("demo",), ("serve",), ("prepare-data",), ("regenerate",), ("train",),
    ("evaluate",), ("convert",), ("bench",), ("report",), ("calibrate",), ("doctor",), ("adapt",),
)  # fmt: skip
UNDER_BENCH = (("bench", "adapt"), ("bench", "cost"), ("bench", "training"), ("bench", "profile"))


def test_help_lists_the_verbs_and_loads_nothing_heavy():
    code = (
        "import sys; from specblock.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    panels = ("Use", "Serve", "Train", "Measure", "Look after")
    places = [done.stdout.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    for (verb,) in VERBS:
        assert f" {verb} " in done.stdout
    assert "bench-" not in done.stdout


@pytest.mark.parametrize("verb", VERBS + UNDER_BENCH, ids=" ".join)
def test_every_verb_has_help(run, verb):
    assert run(*verb, "--help").exit_code == 0


@pytest.mark.parametrize("former", ["bench-adapt", "bench-cost", "bench-training", "profile"])
def test_a_former_name_says_the_new_one(run, former):
    result = run(former, "--stream", "x", "--help")
    now = "bench " + former.removeprefix("bench-")
    assert result.exit_code == 2
    assert result.stderr == f"specblock: `{former}` is now `specblock {now}`.\n"


def test_the_package_runs_as_a_module():
    """What ``torchrun -m specblock train`` relies on."""
    told = subprocess.run(
        [sys.executable, "-m", "specblock", "--version"], capture_output=True, text=True
    )
    assert told.returncode == 0
    assert told.stdout.startswith("specblock ")


def test_version(run, monkeypatch):
    import specblock

    monkeypatch.setattr(specblock, "__version__", "9.9", raising=False)
    assert run("--version").stdout == "specblock 9.9\n"


def test_usage_errors_exit_2(run):
    assert run("generate", "x", "--no-such-option").exit_code == 2
    assert run("dance").exit_code == 2


def test_demo_on_a_pipe(fake, run):
    result = run("demo", "--limit", "2", "--max-new-tokens", "6")
    assert result.exit_code == 0, result.output
    assert "[1/2]" in result.stdout
    assert "[2/2]" in result.stdout
    assert "Identical token for token: yes." in result.stdout
    assert "2.00 times as fast" in result.stdout
    assert "\x1b" not in result.stdout


def test_demo_names_a_difference(fake, run):
    fake.alter = lambda ids, finish: ([*ids[:2], 0, *ids[3:]], finish)
    result = run("demo", "--limit", "1", "--max-new-tokens", "6")
    assert "Identical token for token: no." in result.stdout
    assert "demo-1 differs at token 2: bug, margin 5" in result.stdout


def test_demo_needs_a_drafter(fake, run):
    result = run("demo", "--drafter", "none")
    assert result.exit_code == 2
    assert "choose a drafter" in result.stderr


def test_live_display_draws_two_columns(fake):
    out = Console(file=io.StringIO(), force_terminal=True, width=80)
    with LiveDisplay(out, 1) as display:
        display.question_starts("What [is] it?")
        for use_drafter in (True, False):
            display.answer_starts(use_drafter)
            display.answer_grows("It is [bold] text", 4)
            display.live.refresh()
            display.answer_ends(fake.generate([1], use_drafter=use_drafter).stats)
    drawn = out.file.getvalue()
    assert "plain decoding" in drawn
    assert "What [is] it?" in drawn
    assert "It is [bold] text" in drawn
    assert "τ 2.50" in drawn


def test_calibrate_measures_anew_and_shows_the_table(fake, run):
    result = run("calibrate")
    assert result.exit_code == 0, result.output
    assert fake.loads[0][1]["calibrate"] == "force"
    assert "50.0" in result.stdout
    assert json.loads(run("calibrate", "--json").stdout)["target"] == {"1": 0.05, "8": 0.06}


def test_our_own_prompts():
    own = load_prompts(OWN_PROMPTS)
    tasks = {}
    for prompt in own:
        tasks[prompt.task] = tasks.get(prompt.task, 0) + 1
    assert len(own) >= 42
    assert min(tasks.values()) >= 6
    assert len(tasks) == 7
    assert len({prompt.id for prompt in own}) == len(own)
    assert any(len(prompt.turns) == 2 for prompt in own)
    assert {prompt.task for prompt in own[:7]} == set(tasks), "a short limit takes every task"
    assert 3 <= len(load_prompts(DEMO_PROMPTS)) <= 6


@pytest.fixture
def converted(monkeypatch):
    """What ``convert`` hands to the library."""
    from specblock.drafters.specblock import convert as library

    calls = []

    def convert(*paths, **options):
        calls.append((paths, options))
        return SimpleNamespace(feature_layers=(1, 5, 9))

    monkeypatch.setattr(library, "convert_published", convert)
    return calls


def test_convert_reads_layers_and_tokenizer_off_the_target(run, converted, monkeypatch, tmp_path):
    from specblock.target.loading import zoo

    (tmp_path / "config.json").write_text('{"num_hidden_layers": 12}')
    monkeypatch.setattr(zoo, "locate_model", lambda name: tmp_path)
    tokenizer = type("Tokenizer", (), {"get_vocab": lambda self: {"a": 0}})()
    monkeypatch.setattr(zoo, "load_tokenizer", lambda folder, name: tokenizer)
    result = run("convert", "from", "to", "--target", "m", "--feature-layers", "1,5,9")
    assert result.exit_code == 0, result.output
    ((paths, options),) = converted
    assert [path.name for path in paths] == ["from", "to"]
    assert (options["target_layers"], options["feature_layers"]) == (12, (1, 5, 9))
    assert options["tokenizer_fingerprint"]
    assert "reads the outputs of layers 1, 5, 9" in result.stdout
    assert "--drafter to" in result.stdout


def test_convert_by_layer_count_alone(run, converted):
    assert run("convert", "from", "to", "--target-layers", "32").exit_code == 0
    assert converted[0][1]["target_layers"] == 32
    assert converted[0][1]["feature_layers"] is None


def test_convert_says_what_is_wrong(run, tmp_path):
    result = run("convert", str(tmp_path), "to", "--feature-layers", "1;2")
    assert result.exit_code == 2
    assert "list of numbers" in result.stderr
    result = run("convert", str(tmp_path / "none"), str(tmp_path / "to"), "--target-layers", "4")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_convert_to_eight_bits_takes_ours_with_its_calibration(run, tmp_path):
    import torch
    from tests.tiny import make_drafter

    from specblock.budget.survival import SurvivalModel
    from specblock.budget.survival_file import load_survival, save_survival
    from specblock.drafters.checkpoint import save_checkpoint

    whole, half = tmp_path / "whole", tmp_path / "half"
    save_checkpoint(make_drafter().model, whole, dtype=torch.bfloat16)
    calibrated = SurvivalModel.fresh(discount=0.5)
    save_survival(calibrated, whole)
    result = run("convert", str(whole), str(half), "--eight-bit")
    assert result.exit_code == 0, result.output
    assert load_survival(half).discount == 0.5
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert sizes[1] < sizes[0]
    assert "--drafter" in result.stdout


def test_convert_refuses_to_lose_the_source(run, tmp_path):
    import torch
    from tests.tiny import make_drafter

    from specblock.drafters.checkpoint import save_checkpoint

    save_checkpoint(make_drafter().model, tmp_path, dtype=torch.bfloat16)
    result = run("convert", str(tmp_path), str(tmp_path), "--eight-bit")
    assert result.exit_code == 2
    assert "another folder" in result.stderr
    result = run("convert", str(tmp_path), str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "in our layout already" in result.stderr
    result = run("convert", str(tmp_path / "none"), str(tmp_path / "out"), "--eight-bit")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def finding(name, verdict, advice=""):
    from specblock.doctor.finding import Finding

    return Finding(name, verdict, f"found by {name}", {"figure": float("nan")}, advice, 0.5)


@pytest.mark.parametrize(
    ("verdicts", "code"), [(("ok", "ok"), 0), (("warning", "ok"), 0), (("wrong", "skipped"), 1)]
)
def test_doctor_ends_with_one_where_something_is_wrong(run, monkeypatch, tmp_path, verdicts, code):
    from specblock.doctor import examine

    findings = [finding("first", verdicts[0], "mend it"), finding("second", verdicts[1])]
    asked = []
    monkeypatch.setattr(examine, "examine", lambda request: asked.append(request) or findings)
    report = tmp_path / "report.json"
    options = ["--drafter", str(tmp_path), "--limit", "2", "--max-new-tokens", "9"]
    result = run("doctor", *options, "--json", str(report))
    assert result.exit_code == code, result.output
    assert (asked[0].limit, asked[0].max_new_tokens) == (2, 9)
    assert "→ mend it" in result.stdout
    places = [result.stdout.index(f"found by {name}") for name in ("first", "second")]
    assert (places[0] > places[1]) == (verdicts[0] != "ok")  # the worst comes last
    written = json.loads(report.read_text())
    assert written["verdict"] == verdicts[0]
    assert written["findings"][0]["figures"] == {"figure": None}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--drafter", "/no/such/folder"], "There is no"),
        (["--prompts", "/no/such/file"], "There is no"),
        (["--dtype", "int3"], "dtype must be one of"),
        (["--device", "tpu"], "not available"),
        (["--model", "/no/such/model", "--drafter", "."], "/no/such/model"),
        (["--limit", "0"], "limit"),
        (["--drafter", __file__], "is a file: give the drafter's folder"),
        (["--drafter", ".", "--json", "/no/such/folder/report.json"], "There is no folder"),
        (["--drafter", ".", "--json", "."], "is a folder: name a file"),
    ],
)
def test_doctor_refuses_what_it_cannot_examine(run, options, says):
    result = run("doctor", *options)
    assert result.exit_code == 2
    assert says in result.stderr
