"""A report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from specblock.bench.report.document import methods_rows, pairs_rows, rounds_rows, tasks_rows
from specblock.bench.report.plots import draw_plots

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px; display: block;
  overflow-x: auto }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, .words th, .words td { text-align: left }
figure { margin: 1rem 0 } figcaption { color: #555 } svg { max-width: 100%; height: auto }
dt { font-weight: 600 } dd { margin: 0 0 .4rem 0 }
"""
_TERMS = {
    "speed-up": "Tokens per second divided by plain decoding's on the same prompt; the median "
    "prompt, and a 95 % interval from a paired bootstrap over prompts. Of decoding: without the "
    "prompt's own forward (prefill). End to end: with it.",
    "τ (accepted length)": "Tokens per verification: accepted draft tokens and one bonus token. "
    "Pooled: over all verifications. Per request: the mean of the answers' own τ.",
    "share of the limit": "The speed-up reached, divided by τ · T(1) / T(N): what it would be if "
    "drafting and all else were free. T(N) is the measured time of verifying N nodes.",
    "identical": "Answers that are plain decoding's token for token. Any other is listed below "
    "with the margin by which plain decoding preferred its own token: a near-tie is explained by "
    "rounding, a bug is not.",
}


def page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of one or more reports by title.

    Raises:
        SpecBlockError: matplotlib is not installed.
    """
    body = "".join(_section(title, report) for title, report in reports.items())
    terms = "".join(f"<dt>{escape(t)}</dt><dd>{escape(text)}</dd>" for t, text in _TERMS.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>SpecBlock benchmark</title><style>{_STYLE}</style></head><body>"
        f"<h1>SpecBlock benchmark</h1>{body}<h2>Terms</h2><dl>{terms}</dl></body></html>\n"
    )


def _section(title: str, report: Mapping[str, Any]) -> str:
    figures = "".join(
        f"<figure><h3>{escape(name)}</h3>{svg}<figcaption>{escape(text)}</figcaption></figure>"
        for name, text, svg in draw_plots(report)
    )
    return (
        f"<h2>{escape(title)}</h2>{_methods(report)}"
        f"{_table(methods_rows(report))}{_table(rounds_rows(report))}"
        f"{_table(pairs_rows(report))}{figures}"
        f"<h3>By task: speed-up of decoding; τ</h3>{_table(tasks_rows(report))}"
        f"<h3>Differences from plain decoding</h3>{_divergences(report)}"
        f"<h3>Measured on</h3>{_facts(report)}"
    )


def _methods(report: Mapping[str, Any]) -> str:
    about = report["settings"].get("contenders", {})
    rows = [
        [name, entry["summary"], entry["budget"] or "–", f"{entry['drafter_parameters'] / 1e6:.1f}"]
        for name, entry in about.items()
    ]
    if not rows:
        return ""
    return _table(
        [["method", "what it is", "nodes a round", "drafter, million weights"], *rows], "words"
    )


def _divergences(report: Mapping[str, Any]) -> str:
    found = report["divergences"]
    if not found:
        return "<p>None.</p>"
    rows = [
        [
            str(item["id"]),
            item["method"],
            str(item["position"]),
            item["kind"],
            "–" if item["margin"] is None else f"{item['margin']:.2g}",
        ]
        for item in found
    ]
    return _table([["prompt", "method", "token", "kind", "margin"], *rows], "words")


def _facts(report: Mapping[str, Any]) -> str:
    facts = {**report["environment"], **(report["settings"]["generation"] or {})}
    rows = [[name, str(value)] for name, value in facts.items() if value is not None]
    return _table([["", ""], *rows], "words")


def _table(rows: Sequence[Sequence[str]], style: str = "figures") -> str:
    """The first row holds the titles; ``words`` are aligned to the left."""
    titles, *body = rows
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body)
    body_rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="{style}"><tr>{head}</tr>{body_rows}</table>'
