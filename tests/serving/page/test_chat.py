"""The page's chat: what is sent, what is shown of what comes, and of what does not."""

import threading

import pytest
from tests.serving.page.contract import CUT, answer, chunk, node, round_of
from tests.serving.page.driving import REFUSED, ask, expect, finished, small_rounds

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
LOST = "The connection to the server was lost"


def test_an_answer_streams_and_the_chat_goes_on(opened, server):
    go_on = threading.Event()
    server.script = [chunk("The"), go_on, *answer(small_rounds(), first="", cached=17)]
    page = opened()
    page.locator("summary", has_text="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("API key").fill("secret")
    ask(page)
    words = page.locator(".turn.assistant .words")
    expect(words).to_have_text("The")  # before the answer's end
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    go_on.set()
    finished(page)
    assert words.text_content() == "The cat sat on the mat. Good"
    sent = server.asked[0]
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What did the cat do?"},
    ]
    assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["seed"]) == (256, 0, 1, 7)
    assert sent["stream_options"] == {"include_usage": True, "include_rounds": True}
    assert server.keys == ["Bearer secret"]
    expect(page.locator("#cached")).to_have_text("17")
    expect(page.locator("#accepted")).to_have_text("1.75")
    expect(page.locator("#speed")).to_have_text("44.0 tokens/s")
    expect(page.locator("#ratio")).to_contain_text("2.20 times")

    page.get_by_label("Your message").fill("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.get_by_role("button", name="Send").click()
    finished(page)
    assert [turn["role"] for turn in server.asked[1]["messages"]] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    assert server.asked[1]["messages"][-1]["content"] == "line one\nline two"
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".turn").count() == 0
    ask(page)
    finished(page)
    assert len(server.asked[2]["messages"]) == 2


def test_text_of_the_model_stays_text(opened, server):
    evil = [round_of(1, [node(EVIL), node(EVIL, 0, True, "text"), node(EVIL, 1, False)], EVIL)]
    server.script = answer(evil, first=EVIL)
    server.status["model"] = EVIL
    page = opened()
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    ask(page, EVIL)
    finished(page)
    assert page.locator(".turn.assistant .words").text_content() == EVIL * 3
    assert page.locator("#tree .node title").first.text_content().startswith("<img␣src=x")
    assert page.locator("img, main script").count() == 0
    assert dialogs == []


def test_stop_ends_the_request_and_keeps_what_came(opened, server):
    server.script = [chunk("Half"), threading.Event()]
    page = opened()
    ask(page)
    expect(page.locator(".turn.assistant .words")).to_have_text("Half")
    page.get_by_role("button", name="Stop").click()
    finished(page)
    expect(page.locator(".turn.assistant .note")).to_have_text("Stopped.")
    assert server.aborted.wait(5), "the server was not told"
    server.script = answer(small_rounds())
    ask(page, "And then?")
    finished(page)
    assert server.asked[-1]["messages"][1] == {"role": "assistant", "content": "Half"}


@pytest.mark.parametrize(
    ("refusal", "script", "told", "kept"),
    [
        ((400, REFUSED), [], REFUSED, ""),
        (None, [chunk("Half"), {"error": {"message": REFUSED}}], REFUSED, "Half"),
        (None, [chunk("Half"), CUT], LOST, "Half"),
    ],
    ids=["refused", "in the stream", "cut"],
)
def test_an_error_is_told_and_one_can_send_again(opened, server, refusal, script, told, kept):
    server.refusal, server.script = refusal, script
    page = opened(may_say=["Failed to load resource"] if refusal else ())
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text(told)
    assert page.locator(".turn.assistant .words").text_content() == kept
    server.refusal, server.script = None, answer(small_rounds())
    page.get_by_role("button", name="Send again").click()
    finished(page)
    expect(page.locator(".turn.assistant .words")).to_have_text("The cat sat on the mat. Good")
    assert page.get_by_role("alert").count() == 0
    assert server.asked[1]["messages"] == server.asked[0]["messages"]


def test_a_server_that_is_gone_is_said_and_found_again(opened, server):
    server.status_refusal = (401, "The key is missing or wrong.")
    page = opened(may_say=["Failed to load resource"])
    expect(page.locator("#connection")).to_have_text("needs an API key: see Settings")
    page.context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("not reachable")
    expect(page.locator("#running")).to_have_text("–")
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text(LOST)
    server.status_refusal = None
    page.context.set_offline(False)
    expect(page.locator("#connection")).to_have_text("connected", timeout=10000)
