"""The page in a real browser, against a server that plays answers written down beforehand."""

import re
import threading

import pytest
from tests.serving.page.contract import (
    ADAPTATION,
    CUT,
    answer,
    big_round,
    chunk,
    node,
    policy,
    recorded,
    round_of,
)

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
expect = sync_api.expect
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def small_rounds():
    return [
        round_of(1, [
            node("The"), node(" cat", 0, True, "network", -0.1), node(" dog", 0, False, "text", -2),
            node(" sat", 1, True, "text", -0.3), node("\n", 3, False, "memory", -1.5),
        ], " on"),
        round_of(2, [node(" on"), node(" a", 0, False, "network", -0.9)], " the"),
        round_of(3, [node(" the")], " mat"),
        round_of(4, [node(" mat"), node(".", 0, True, "memory", -0.2)], " Good"),
    ]  # fmt: skip


def ask(page, text="What did the cat do?"):
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def finished(page):
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def texts(page, selector):
    return page.locator(selector).all_text_contents()


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


def test_the_tree_is_drawn_as_sent(opened, server):
    first = small_rounds()[0]
    server.script = answer([first])
    page = opened()
    ask(page)
    finished(page)
    expect(page.locator("#where")).to_have_text("Round 1 of 1")
    expect(page.locator("#tree .node")).to_have_count(6)
    assert texts(page, "#tree .node.accepted text") == ["The", "␣cat", "␣sat", "␣on"]
    assert texts(page, "#tree .node:not(.accepted) text") == ["␣dog", "↵"]
    for source, labels in {
        "network": ["␣cat"], "text": ["␣dog", "␣sat"], "memory": ["↵"], "bonus": ["␣on"]
    }.items():  # fmt: skip
        assert texts(page, f"#tree .node.{source} text") == labels
    boxes = [one.bounding_box() for one in page.locator("#tree .node.accepted .box").all()]
    middles = [box["y"] + box["height"] / 2 for box in boxes]
    assert max(middles) - min(middles) < 1, "the accepted path is one row"
    assert [box["x"] for box in boxes] == sorted(box["x"] for box in boxes)
    assert page.locator("#tree .edge.accepted").count() == 3
    picture = page.get_by_role("img", name="“ cat sat”")
    assert "The model's own next token: “ on”" in page.locator("#caption").text_content()
    assert picture.count() == 1


def test_an_answer_of_the_real_server_is_understood(opened, server):
    server.script = recorded()
    page = opened()
    ask(page)
    finished(page)
    said = page.locator(".turn.assistant .words").text_content()
    assert said == "The cat sat on the mat. The dog ran."
    expect(page.locator("#where")).to_have_text("Round 5 of 5")
    expect(page.locator("#accepted")).to_have_text("2.20")  # 11 tokens after the prompt's
    expect(page.locator("#cached")).to_have_text("24")
    expect(page.locator("#speed")).to_have_text("30.9 tokens/s")
    page.get_by_label("Round", exact=True).press("Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert texts(page, "#tree .node.accepted text") == ["␣dog", "␣ran", ".", "<|im_end|>"]


def test_what_is_not_told_is_not_made_up(opened, server):
    """A remembered token that was rejected has no text, an answer that ended early no bonus."""
    nodes = [node("The"), node(" cat", 0, True), node("", 1, False, "memory", -1)]
    server.script = answer([round_of(1, nodes, "")])
    page = opened()
    ask(page)
    finished(page)
    assert texts(page, "#tree .node text") == ["The", "␣cat", "•••"]
    assert "not shown" in page.locator("#tree .node.memory title").text_content()
    expect(page.locator("#caption")).to_contain_text("The answer ended here.")
    expect(page.locator("#accepted")).to_have_text("1.00")


def test_a_big_tree_of_odd_tokens_overlaps_nothing(opened, server, screenshot):
    server.script = answer([big_round()])
    page = opened()
    ask(page)
    finished(page)
    expect(page.locator("#tree .node")).to_have_count(62)
    labels = " ".join(texts(page, "#tree .node text"))
    for sign in ("↵", "␣␣", "\ufffd", "⇥", "⟨200b⟩", "…", "∅"):
        assert sign in labels
    boxes = [one.bounding_box() for one in page.locator("#tree .node .box").all()]
    for at, one in enumerate(boxes):
        for other in boxes[:at]:
            apart = (
                one["x"] >= other["x"] + other["width"] or other["x"] >= one["x"] + one["width"]
                or one["y"] >= other["y"] + other["height"]
                or other["y"] >= one["y"] + one["height"]
            )  # fmt: skip
            assert apart, (one, other)
    inside = page.evaluate(
        """() => [...document.querySelectorAll("#tree .node")].every((node) => {
            const [box, text] = [node.querySelector(".box"), node.querySelector("text")]
              .map((part) => part.getBBox());
            return text.x >= box.x && text.x + text.width <= box.x + box.width;
        })"""
    )
    assert inside, "a label is wider than its box"
    screenshot(page, "tree-60-nodes")
    wide = "(at) => at.scrollWidth > at.clientWidth"
    assert page.locator("#canvas").evaluate(wide)
    page.get_by_label("fit to width").check()
    assert not page.locator("#canvas").evaluate(wide)


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


REFUSED = "The prompt has 9000 tokens and the model reads 8192: shorten it."
LOST = "The connection to the server was lost"


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


def test_rounds_are_stepped_through_by_keyboard(opened, server):
    go_on = threading.Event()
    rounds = small_rounds()
    events = answer(rounds)
    server.script = [*events[:3], go_on, *events[3:]]
    page = opened()
    ask(page)
    where = page.locator("#where")
    expect(where).to_have_text("Round 2 of 2")
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    go_on.set()
    finished(page)
    expect(where).to_have_text("Round 2 of 4")  # a paused round stays
    page.keyboard.press("ArrowLeft")
    expect(where).to_have_text("Round 1 of 4")
    assert page.locator(".words .chosen").text_content() == " cat sat on"
    page.keyboard.press("ArrowLeft")
    expect(where).to_have_text("Round 1 of 4")
    page.keyboard.press("End")
    expect(where).to_have_text("Round 4 of 4")
    page.get_by_label("Round", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    expect(where).to_have_text("Round 3 of 4")
    expect(page.locator("#caption")).to_contain_text("A plain step")
    page.get_by_role("button", name="Previous round").press("Enter")
    expect(where).to_have_text("Round 2 of 4")
    page.get_by_role("button", name="Replay").press("Enter")
    page.keyboard.press("Home")
    page.get_by_role("button", name="Replay").press("Enter")
    expect(where).to_have_text("Round 2 of 4")
    page.get_by_role("button", name="Pause").press("Enter")
    page.wait_for_timeout(900)
    expect(where).to_have_text("Round 2 of 4")


def test_everything_is_reached_by_tab_and_shows_the_focus(opened, server):
    server.script = answer(small_rounds())
    page = opened()
    ask(page)
    finished(page)
    page.get_by_role("heading", name="SpecBlock").click()  # Tab goes on from here
    seen = []
    for _ in range(20):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => { const at = document.activeElement, style = getComputedStyle(at);
                 return [at.id || at.textContent, style.outlineStyle, style.outlineWidth]; }"""
        )
        assert at[1:] == ["solid", "2px"], at
        seen.append(at[0])
        if at[0] == "canvas":
            break
    assert seen == [
        "fresh", "What am I looking at?", "log", "Settings", "prompt",
        "send", "back", "pause", "next", "round", "whole", "canvas",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [360, 700, 960, 1280, 1920])
def test_no_width_scrolls_sideways(opened, server, width, screenshot):
    server.script = answer([*small_rounds(), big_round(5)], first="x" * 300 + " The")
    server.status["adaptation"] = ADAPTATION
    page = opened(width=width, height=740)
    ask(page)
    finished(page)
    page.locator("#settings summary").click()
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
    if width == 360:
        chat, tree = (page.locator(at).bounding_box() for at in (".chat", ".drawing"))
        assert tree["y"] > chat["y"] + chat["height"]
        screenshot(page, "phone")


# text (with where it stands) -> its contrast by WCAG's formula, of every text that is shown
CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);  // all are rgb(...)
  const luminance = (rgb) => rgb.slice(0, 3).map((one) => one / 255)
    .map((one) => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4)
    .reduce((sum, one, at) => sum + one * [.2126, .7152, .0722][at], 0);
  const behind = (at) => {
    for (; at; at = at.parentElement) {
      const box = at.matches("g.node") && at.querySelector(".box");
      const style = getComputedStyle(box || at);
      const colour = numbers(box ? style.fill : style.backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = {};
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent, at = texts.currentNode.parentElement;
    if (!text.trim() || !at.checkVisibility() || at.closest("script, title")) continue;
    const style = getComputedStyle(at), own = at.closest("svg") ? style.fill : style.color;
    const [less, more] = [numbers(own), behind(at)].map(luminance).sort((a, b) => a - b);
    found[`${at.tagName} ${at.getAttribute("class")} ${text}`] = (more + .05) / (less + .05);
  }
  return found;
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_contrast(opened, server, dark, screenshot):
    server.status["adaptation"] = ADAPTATION
    server.script = answer([*small_rounds(), big_round(5, nodes=24, depth=8)])
    page = opened(dark=dark)
    ask(page)
    finished(page)
    expect(page.locator("#tree .node")).to_have_count(26)
    screenshot(page, "desktop-dark" if dark else "desktop")
    server.script = [chunk("Half"), {"error": {"message": REFUSED}}]
    for summary in page.locator("summary").all():
        summary.click()
    ask(page)
    expect(page.get_by_role("alert")).to_be_visible()
    found = page.evaluate(CONTRASTS)
    assert len(found) > 40
    assert {text: ratio for text, ratio in found.items() if ratio < 4.5} == {}
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 150) == dark


def test_figures_say_what_the_status_says(opened, server):
    page = opened()
    expect(page.locator("#connection")).to_have_text("connected")
    expect(page.locator("#adaptation")).to_be_hidden()
    expect(page.locator("#accepted-recent")).to_have_text("2.75")
    expect(page.locator("#cached-all")).to_have_text("1,234")
    expect(page.locator("#running")).to_have_text("0 of 16")
    server.status |= {"adaptation": ADAPTATION, "running": 3, "plain_tokens_per_second": None}
    page.get_by_label("API key").evaluate("(at) => at.dispatchEvent(new Event('change'))")
    expect(page.locator("#learned")).to_contain_text("7 updates in 12.5 s, 2 rolled back")
    expect(page.locator("#plain")).to_have_text("not measured")
    before = server.polls
    page.wait_for_timeout(2300)
    assert 2 <= server.polls - before <= 3  # once a second while something runs
    page.evaluate(
        """() => { Object.defineProperty(document, "hidden", { value: true });
                   document.dispatchEvent(new Event("visibilitychange")); }"""
    )
    before = server.polls
    page.wait_for_timeout(1200)
    assert server.polls == before  # not at all while nobody looks


def test_the_page_is_one_file_and_keeps_to_the_policy(opened, server):
    html = server.html
    assert html.count("<script") == html.count("<style") == 1
    assert not re.search(r"\s(on\w+|style|src)=|https?://(?!www\.w3\.org/\$\{space\})", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", html)
    server.html = html.replace("</main>", '</main><p id="more" onclick="1" style="color: red">')
    assert policy(server.html) == policy(html)
    page = opened(may_say=["Content Security Policy"])
    colour = page.locator("#more").evaluate("(at) => getComputedStyle(at).color")
    assert colour != "rgb(255, 0, 0)", "the policy was not in force"
