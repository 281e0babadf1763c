"""The draft tree on the page, its rounds, and the figures beside it."""

import threading

from tests.serving.page.contract import ADAPTATION, answer, big_round, node, recorded, round_of
from tests.serving.page.driving import ask, expect, finished, small_rounds, texts


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
