"""A headless Chromium and the page in it; without one, these tests are skipped."""

import shutil
import threading
from pathlib import Path

import pytest
from tests.serving.page.contract import Contract

SCREENSHOTS = Path(__file__).parents[3] / "build" / "screenshots"
WORRIES = ("warning", "error")
HOW = "install it with 'apt-get install chromium' (Debian, Ubuntu; 'make chromium' as root does)"


@pytest.fixture(scope="module")
def browser():
    """Closed with the module: its event loop is in the way of other tests' ``asyncio.run``."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip(f"no Chromium: {HOW}")
    from playwright.sync_api import sync_playwright  # modules that use it are skipped without

    with sync_playwright() as run:
        # root may not use Chromium's sandbox, and containers have little shared memory
        found = run.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield found
        found.close()


@pytest.fixture
def server():
    serving = Contract()
    thread = threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()


@pytest.fixture
def opened(browser, server):
    """``opened(width=..., dark=...)``: the page, loaded; whatever its console says is an error."""
    contexts, said = [], []

    def load(width=1280, height=800, dark=False, may_say=(), **settings):
        scheme = "dark" if dark else "light"
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **settings
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("pageerror", lambda error: said.append((str(error), may_say)))
        page.on(
            "console",
            lambda one: one.type in WORRIES and said.append((one.text, may_say)),
        )
        page.goto(server.url)
        return page

    yield load
    for context in contexts:
        context.close()
    assert [text for text, expected in said if not any(part in text for part in expected)] == []


@pytest.fixture
def screenshot():
    """``screenshot(page, name)``: for looking at, kept by whoever runs the tests."""

    def take(page, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True, animations="disabled")

    return take
