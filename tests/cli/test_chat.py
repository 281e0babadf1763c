from specblock.cli.decoding import chat as chat_module
from specblock.errors import ContextError


def test_a_conversation_from_a_pipe_keeps_its_history(fake, run):
    result = run("chat", "--max-new-tokens", "2", "--system", "S", stdin="one\n\ntwo\n")
    assert result.exit_code == 0, result.output
    first, second = (call[0] for call in fake.calls)
    assert [m["content"] for m in first] == ["S", "one"]
    assert [m["role"] for m in second] == ["system", "user", "assistant", "user"]
    assert second[2]["content"] == result.stdout.splitlines()[0]
    assert len(result.stdout.splitlines()) == 2


def test_commands(fake, run):
    result = run("chat", "--max-new-tokens", "1", stdin="a\n/reset\nb\n/help\n/dance\n/exit\nc\n")
    assert result.exit_code == 0
    assert [[m["content"] for m in call[0]] for call in fake.calls] == [["a"], ["b"]]
    assert "/reset   forget" in result.stdout
    assert "no command /dance" in result.stderr


def test_ctrl_c_stops_the_answer_and_not_the_program(fake, run):
    fake.interrupt_after = 2
    result = run("chat", "--max-new-tokens", "5", stdin="one\ntwo\n")
    assert result.exit_code == 0
    assert "[stopped]" in result.stdout
    history = fake.calls[1][0]
    assert history[1]["content"].split() == result.stdout.splitlines()[0].split()[:2]
    assert history[2]["content"] == "two"


def test_an_error_ends_a_piped_chat_with_one_sentence(fake, run):
    fake.error = ContextError("Too long.")
    result = run("chat", stdin="one\n")
    assert result.exit_code == 2
    assert result.stderr == "specblock: Too long.\n"


def test_an_error_at_a_terminal_leaves_the_conversation_usable(fake, capsys):
    conversation = chat_module.Conversation(fake, chat_module.GenerationConfig(), None)
    conversation.at_terminal = True
    fake.error = ContextError("Too long.")
    conversation._answer("one")
    assert conversation.messages == []
    assert "/reset" in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_of_a_terminal_goes_on(fake, monkeypatch):
    conversation = chat_module.Conversation(fake, chat_module.GenerationConfig(), None)
    conversation.at_terminal = True
    answers = iter([KeyboardInterrupt, EOFError])

    def read(_):
        raise next(answers)

    monkeypatch.setattr("builtins.input", read)
    conversation.run()
    assert fake.calls == []
