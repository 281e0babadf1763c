import json

import pytest

from specblock.errors import ContextError, ModelError


def test_streams_the_answer(fake, run):
    result = run("generate", "Hello", "--max-new-tokens", "3")
    assert result.exit_code == 0, result.output
    (prompt, config, use_drafter) = fake.calls[0]
    assert prompt == [{"role": "user", "content": "Hello"}]
    assert (config.max_new_tokens, use_drafter) == (3, True)
    assert result.stdout == "w10 w17 w24 \n"
    assert result.stderr == ""


def test_json_has_the_promised_keys(fake, run):
    result = run("generate", "Hello", "--json", "--max-new-tokens", "5")
    answer = json.loads(result.stdout)
    assert answer["text"] == "w10 w17 w24 w31 w38 "
    assert answer["token_ids"] == [10, 17, 24, 31, 38]
    assert answer["finish_reason"] == "length"
    assert answer["prompt_tokens"] == 1
    assert answer["new_tokens"] == 5
    assert answer["rounds"] == 2
    assert answer["accepted_length"] == 2.5
    assert answer["seconds"] > 0
    assert answer["tokens_per_second"] > 0


def test_options_reach_the_config(fake, run):
    arguments = "--temperature 0.7 --top-k 5 --top-p 0.9 --min-p 0.05 --seed 11"
    penalties = "--repetition-penalty 1.1 --frequency-penalty 0.2 --presence-penalty 0.3"
    stops = ["--stop", "END", "--stop", "\n\n", "--max-new-tokens", "2"]
    result = run("generate", "x", *arguments.split(), *penalties.split(), *stops)
    assert result.exit_code == 0, result.output
    config = fake.calls[0][1]
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (0.7, 5, 0.9, 0.05)
    assert (config.repetition_penalty, config.frequency_penalty) == (1.1, 0.2)
    assert (config.presence_penalty, config.seed) == (0.3, 11)
    assert config.stop_strings == ("END", "\n\n")


def test_loading_options(fake, run):
    run("generate", "x", "--model", "m", "--dtype", "bfloat16", "--device", "cpu", "--threads", "2")
    run("generate", "x", "--drafter", "none")
    run("generate", "x", "--drafter", "some/folder", "--no-exact")
    options = {"drafter": "auto", "dtype": "bfloat16", "device": "cpu", "threads": 2}
    options |= {"exact": None, "calibrate": "missing", "govern": False}
    assert fake.loads[0] == ("m", options)
    assert [loaded[1]["drafter"] for loaded in fake.loads] == ["auto", None, "some/folder"]
    assert fake.loads[2][1]["exact"] is False


@pytest.mark.parametrize("arguments", [["generate"], ["generate", "-"]])
def test_prompt_from_standard_input(fake, run, arguments):
    result = run(*arguments, "--max-new-tokens", "1", stdin="from a pipe\nsecond line\n")
    assert result.exit_code == 0
    assert fake.calls[0][0][0]["content"] == "from a pipe\nsecond line\n"


def test_system_raw_and_no_stream(fake, run):
    run("generate", "x", "--system", "Be brief.", "--max-new-tokens", "1")
    assert fake.calls[0][0][0] == {"role": "system", "content": "Be brief."}
    result = run("generate", "Once upon", "--raw", "--no-stream", "--max-new-tokens", "1")
    assert fake.calls[1][0] == [4, 4], "the text's own tokens, without template"
    assert result.stdout.startswith("w")


def complains(result, *words):
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("specblock: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["  "], "prompt is empty"),
        (["x", "--raw", "--system", "s"], "--system needs the chat template"),
        (["x", "--max-new-tokens", "0"], "max_new_tokens must be"),
        (["x", "--temperature", "-1"], "temperature must be"),
        (["x", "--top-p", "1.5"], "top_p must be"),
        (["x", "--stop", ""], "stop_strings"),
    ],
)
def test_bad_input_is_one_sentence_before_any_loading(fake, run, arguments, word):
    complains(run("generate", *arguments), word)
    assert fake.loads == []


def test_empty_standard_input(fake, run):
    complains(run("generate", stdin="\n"), "prompt is empty")


@pytest.mark.parametrize("mode", [["--json"], ["--no-stream"], ["--stream"]])
def test_an_error_while_generating(fake, run, mode):
    fake.error = ContextError("The prompt has 9000 tokens, the context holds 8192; shorten it.")
    complains(run("generate", "x", *mode), "9000 tokens")


def test_an_error_while_loading(fake, run, monkeypatch):
    import specblock

    def load(model, **options):
        raise ModelError("There is no model x.")

    monkeypatch.setattr(specblock, "load", load)
    complains(run("generate", "x", "--model", "x"), "no model x")


def test_a_defect_is_not_dressed_up_as_a_user_error(fake, run):
    fake.error = RuntimeError("a defect")
    assert isinstance(run("generate", "x").exception, RuntimeError)


def test_ctrl_c_exits_130(fake, run):
    fake.interrupt_after = 2
    result = run("generate", "x", "--max-new-tokens", "5")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_bytes_that_are_no_text_are_a_sentence(fake, run):
    complains(run("generate", stdin=b"caf\xe9\xff"), "not UTF-8")
    complains(run("generate", "caf\udce9"), "not UTF-8")
    assert run("generate", "--max-new-tokens", "1", stdin=b"nul \0 byte\n").exit_code == 0


def test_a_chat_goes_on_whatever_bytes_come_in(fake, run):
    result = run("chat", "--max-new-tokens", "1", stdin=b"caf\xe9\n/exit\n")
    assert result.exit_code == 0, result.output
