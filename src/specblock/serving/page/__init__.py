"""The page that is served at ``/``: one file without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from importlib import resources

__all__ = ["Page"]


class _Inline(HTMLParser):
    """Collects the text of every script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {"script": [], "style": []}
        self._within: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.found:
            self._within = tag
            self.found[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._within:
            self._within = None

    def handle_data(self, data: str) -> None:
        if self._within is not None:
            self.found[self._within][-1] += data


class Page:
    """Its bytes, and the policy under which a browser runs nothing but what is in it."""

    def __init__(self, text: str | None = None):
        if text is None:
            file = resources.files("specblock") / "serving" / "page" / "index.html"
            text = file.read_text(encoding="utf-8")
        inline = _Inline()
        inline.feed(text)
        inline.close()
        self.content = text.encode()
        self.policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src {_sources(inline.found['script'])}",
                f"style-src {_sources(inline.found['style'])}",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )


def _sources(texts: list[str]) -> str:
    """The hashes of inline texts, as a policy lists them."""
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(own).decode()}'" for own in digests) or "'none'"
