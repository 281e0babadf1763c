"""How a reader uses the page, and what they say to it."""

import pytest
from tests.serving.page.contract import node, round_of

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
expect = sync_api.expect
REFUSED = "The prompt has 9000 tokens and the model reads 8192: shorten it."


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
