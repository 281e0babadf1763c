"""The API reference is built without a warning, and no link in it is dead (``make docs``)."""

import pytest

from tests.tool import tool

pytest.importorskip("pdoc", reason="pdoc is not installed: pip install 'specblock[docs]'")


@pytest.fixture(scope="module")
def reference():
    return tool("reference")


@pytest.mark.slow
def test_it_is_built_and_leads_somewhere(reference, tmp_path):
    reference.build(tmp_path)
    assert len(list(tmp_path.rglob("*.html"))) >= len(reference.PUBLIC)
    assert reference.dead_links(tmp_path) == []
    page = (tmp_path / "specblock" / "api.html").read_text(encoding="utf-8")
    assert '<h6 id="arguments">Arguments:</h6>' in page
    assert ":class:" not in page.split("view-source")[0]


def test_a_dead_link_is_found(reference, tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="#x">1</a><a href="b.html#y">2</a></p>')
    (tmp_path / "b.html").write_text('<a href="a.html#x">1</a><a href="c.html">2</a>')
    assert sorted(reference.dead_links(tmp_path)) == ["a.html: b.html#y", "b.html: c.html"]
