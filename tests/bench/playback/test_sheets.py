"""Cost sheets: the paper's figures follow from its own, rooflines by hand, what is refused."""

import json

import pytest

from specblock.bench.costs.shapes import find_shape
from specblock.bench.playback.published import EAGLE3, NODES, SPECBLOCK, paper_tables
from specblock.bench.playback.roofline import H100, Gpu, forward_seconds, roofline_tables
from specblock.bench.playback.rounds import PlayedRound, priced
from specblock.bench.playback.sheet import SHIPPED, CostSheet, find_sheet
from specblock.budget.costs import CostTable
from specblock.errors import ConfigError

ROUNDS = {
    "eagle3": PlayedRound(6, (10,) * 7, NODES),
    "specblock": PlayedRound(5, (28,), NODES),
}


@pytest.mark.parametrize(("kind", "run"), [("eagle3", EAGLE3), ("specblock", SPECBLOCK)])
def test_the_papers_own_figures_follow_from_its_sheet(kind, run):
    table = paper_tables()[kind]
    cost = priced([ROUNDS[kind]], table)
    # verifying is the mean of two figures that differ by 2.4 %
    assert run.tau * table.target_seconds(1) / cost.seconds == pytest.approx(run.speedup, rel=0.012)
    assert cost.draft / cost.seconds == pytest.approx(run.drafting_share, abs=0.003)
    assert ROUNDS[kind].calls == run.calls


def test_what_the_paper_says_by_hand():
    # 5.89 / 3.59 = 1.6407 plain steps, 31 % of which are 0.5086; 5.16 / 3.92 = 1.3163, 0.2106
    assert EAGLE3.drafting_steps == pytest.approx(0.5086, abs=1e-4)
    assert SPECBLOCK.drafting_steps == pytest.approx(0.2106, abs=1e-4)
    drafts = [priced([ROUNDS[kind]], paper_tables()[kind]).draft for kind in ROUNDS]
    assert drafts[1] / drafts[0] == pytest.approx(0.2106 / 0.5086, abs=1e-3)


def test_a_forward_by_hand():
    gpu = Gpu(bandwidth=1e3, throughput=1e5, launch=0.5)
    # weights 6 * 10 + 10 * 4 = 100; a row reads and writes 16 + 14 = 30
    products = [(6, 10), (10, 4)]
    # (2 bytes * (100 + 2 * 30) + 80) / 1000 = 0.4
    assert forward_seconds(products, 2, 80, gpu) == pytest.approx(0.4 + 0.5)
    # 2 * 1000 * 100 / 1e5 = 2 is longer than... (2 * (100 + 30000)) / 1000 = 60.2
    assert forward_seconds(products, 1000, 0, gpu) == pytest.approx(60.2 + 0.5)
    slow = Gpu(bandwidth=1e9, throughput=1e5, launch=0.0)
    assert forward_seconds(products, 1000, 0, slow) == pytest.approx(2.0)


def test_the_roofline_reads_each_models_weights():
    tables = roofline_tables("llama-3.1-8b", Gpu(1e12, 1e30, 0.0, context=0))
    # 8.03 G parameters less the 525 M of the embeddings, of which only rows are read
    assert tables["eagle3"].target_seconds(1) == pytest.approx(2 * 7.505e9 / 1e12, rel=2e-3)
    first, later = (
        {kind: getattr(table, name)[1] for kind, table in tables.items()}
        for name in ("draft_first", "draft_next")
    )
    assert first["specblock"] == pytest.approx(2 * 702.6e6 / 1e12, rel=5e-3)
    assert later["specblock"] == pytest.approx(2 * 652.3e6 / 1e12, rel=5e-3)
    assert first["eagle3"] == pytest.approx(2 * 424.7e6 / 1e12, rel=5e-3)
    assert later["eagle3"] == pytest.approx(2 * 374.4e6 / 1e12, rel=5e-3)
    # two calls against eight, by bytes alone
    drafts = [priced([ROUNDS[kind]], tables[kind]).draft for kind in ROUNDS]
    assert drafts[1] / drafts[0] == pytest.approx(0.445, abs=0.01)


def test_the_caches_are_read_too():
    size = find_shape("llama-3.1-8b")
    assert size.layers == 32
    with_cache, without = (
        roofline_tables("llama-3.1-8b", Gpu(1e12, 1e30, 0.0, context))["specblock"]
        for context in (1000, 0)
    )
    # 128 KiB a position of the target, 32 KiB of the drafter with four slots
    assert with_cache.target_seconds(1) - without.target_seconds(1) == pytest.approx(
        1000 * 128 * 1024 / 1e12
    )
    assert with_cache.draft_next_seconds(1) - without.draft_next_seconds(1) == pytest.approx(
        1000 * 32 * 1024 / 1e12
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_survives_a_file(name, tmp_path):
    sheet = find_sheet(name)
    path = tmp_path / "sheet.json"
    path.write_text(json.dumps(sheet.to_dict()))
    again = find_sheet(str(path))
    assert again.name == sheet.name == name
    assert again.plain_seconds == sheet.plain_seconds
    for kind, table in sheet.tables.items():
        assert priced([ROUNDS[kind]], again.tables[kind]) == priced([ROUNDS[kind]], table)


def test_launches_count_for_every_forward():
    base, dear = (
        roofline_tables("qwen3-8b", Gpu(H100.bandwidth, H100.throughput, launch))["eagle3"]
        for launch in (0.0, 1e-3)
    )
    more = priced([ROUNDS["eagle3"]], dear).seconds - priced([ROUNDS["eagle3"]], base).seconds
    assert more == pytest.approx(9e-3)


def test_what_is_no_sheet_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'h100-qwen3-8b'"):
        find_sheet("h100-qwen3-8")
    path = tmp_path / "x.json"
    for text in ("{", "[]", '{"name": "x", "about": "", "source": "", "tables": {}}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is no cost sheet"):
            find_sheet(str(path))
    with pytest.raises(ValueError, match="same seconds of a plain step"):
        CostSheet("x", "", "", {"a": CostTable({1: 1.0}), "b": CostTable({1: 2.0})})
