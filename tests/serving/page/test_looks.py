"""The page for every screen, hand and eye, and under its policy."""

import re

import pytest
from tests.serving.page.contract import ADAPTATION, answer, big_round, chunk, policy
from tests.serving.page.driving import REFUSED, ask, expect, finished, small_rounds


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


def test_in_a_low_window_the_panels_scroll_and_not_the_page(opened, server):
    page = opened(height=500)
    for summary in page.locator("summary").all():
        summary.click()
    chat = page.locator(".chat")
    assert chat.evaluate("(at) => at.scrollHeight > at.clientHeight")
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    page.get_by_role("button", name="Send").scroll_into_view_if_needed()
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()


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
