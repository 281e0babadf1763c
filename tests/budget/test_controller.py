"""The budget controller over simulated texts, against plain decoding and fixed budgets."""

import random

import pytest
import torch
from tests.budget.cost_tables import CPU, GPU, STEEP

from specblock.budget.allowance import Account
from specblock.budget.controller import BudgetController
from specblock.budget.costs import CostTable
from specblock.budget.survival import endings


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class World:
    """Rounds of two blocks with known probabilities; the drafter's claims may be distorted.

    `skill` scales how often drafts are right, `skew` distorts the log-odds, and `spell` is the
    number of rounds after which the skill falls to a twentieth or comes back.
    """

    SLOTS = 4

    def __init__(self, skill: float, skew: tuple[float, float], spell: int | None, seed: int):
        self.source = random.Random(seed)
        self.skill, self.skew, self.spell, self.time = skill, skew, spell, 0

    def block(self, nodes: dict, at: int, skill: float, leaf: int) -> list[int]:
        starters = []
        for slot in range(self.SLOTS):
            best = skill * 0.88**slot * self.source.betavariate(3, 1.2)
            best = min(0.98, max(0.001, best))
            rest = (1 - best) * 0.6 * min(1.0, skill)
            first = len(nodes["parents"])
            for probability in (best, rest / 2, rest / 4, rest / 8):
                nodes["parents"].append(at)
                nodes["truth"].append(probability)
                nodes["leaf"].append(leaf)
            starters += range(first + 1, first + 4)
            at = first
        return [*starters, at]

    def round(self) -> dict:
        good = self.spell is None or (self.time // self.spell) % 2 == 0
        self.time += 1
        skill = self.skill * (1 if good else 0.05) * 1.2 * self.source.betavariate(4, 1.5)
        nodes = {"parents": [-1], "truth": [0.5], "leaf": [-1]}
        nodes["starters"] = self.block(nodes, 0, skill, -1)
        for leaf in nodes["starters"]:
            self.block(nodes, leaf, skill * 0.95, leaf)
        nodes["path"] = self.walk(nodes)
        slope, bias = self.skew
        odds = torch.tensor(nodes["truth"]).logit() * slope + bias
        log_probs = torch.nn.functional.logsigmoid(odds)
        log_probs[0] = 0.0
        scores = log_probs.tolist()
        for node in range(1, len(scores)):
            scores[node] += scores[nodes["parents"][node]]
        return {**nodes, "log_probs": log_probs, "scores": scores}

    def walk(self, nodes: dict) -> list[int]:
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(nodes["parents"]):
            children.setdefault(parent, []).append(node)
        path, going = [], 0
        while going is not None:
            path.append(going)
            u, going = self.source.random(), None
            for child in children.get(path[-1], []):
                u -= nodes["truth"][child]
                if u < 0:
                    going = child
                    break
        return path


def fixed_speed(rounds: list[dict], costs: CostTable, leaves: int, size: int) -> float:
    tokens = seconds = 0.0
    for nodes in rounds:
        scores = nodes["scores"]
        starters = sorted(nodes["starters"], key=lambda node: -scores[node])
        allowed = {-1, *starters[:leaves]}
        candidates = [n for n in range(1, len(scores)) if nodes["leaf"][n] in allowed]
        verified = set(sorted(candidates, key=lambda node: -scores[node])[:size])
        accepted = 1
        while accepted < len(nodes["path"]) and nodes["path"][accepted] in verified:
            accepted += 1
        tokens += accepted
        seconds += costs.round_seconds(accepted, (leaves,), len(verified))
    return tokens / seconds


def controlled_round(control: BudgetController, nodes: dict) -> tuple[int, tuple[int, int]]:
    """Tokens of one speculating round, and its leaves and nodes."""
    leaf = torch.tensor(nodes["leaf"])
    parents, log_probs = torch.tensor(nodes["parents"]), nodes["log_probs"]
    first = int((leaf < 0).sum())
    classes = torch.zeros(len(leaf), dtype=torch.int64)
    reached = control.model.survival(log_probs[:first], classes[:first], parents[:first])
    ends = endings(reached, parents[:first])
    starters = torch.tensor(nodes["starters"])
    starters = starters[ends[starters].argsort(descending=True, stable=True)]
    count = control.leaves(ends[starters], 24)

    # The candidates as a tree of their own: `kept` maps its indices to the world's.
    kept = torch.isin(leaf, torch.cat((torch.tensor([-1]), starters[:count]))).nonzero().squeeze(1)
    place = torch.zeros(len(leaf), dtype=torch.int64)
    place[kept] = torch.arange(len(kept))
    below = place[parents[kept]]
    below[0] = -1
    reached = control.model.survival(log_probs[kept], classes[kept], below)
    order = reached[1:].argsort(descending=True, stable=True) + 1
    size = control.nodes(reached[order], leaf[kept][order] >= 0)
    verified = torch.cat((torch.zeros(1, dtype=torch.int64), order[:size]))

    row = {int(kept[node]): index for index, node in enumerate(verified)}
    path = [0]
    while len(path) < len(nodes["path"]) and nodes["path"][len(path)] in row:
        path.append(nodes["path"][len(path)])
    trials = [
        [(row[n], n in path) for n in row if n and nodes["parents"][n] == node] for node in path
    ]
    control.update(log_probs[kept][verified], classes[: size + 1], trials)
    return len(path), (count, size)


def controlled_speed(rounds: list[dict], costs: CostTable) -> tuple[float, BudgetController, list]:
    control, tokens, seconds, backlog, budgets = BudgetController(costs), 0.0, 0.0, 0, []
    for nodes in rounds:
        if control.speculate():
            got, budget = controlled_round(control, nodes)
            tokens += got
            seconds += costs.round_seconds(backlog + got, budget[:1], budget[1])
            backlog = 0
            budgets.append(budget)
        else:
            control.update_without()
            tokens, seconds, backlog = tokens + 1, seconds + costs.target_seconds(1), backlog + 1
            budgets.append(None)
    return tokens / seconds, control, budgets


WORLDS = {
    "good": (1.0, (1.0, 0.0), None),
    "fair, flat claims": (0.8, (0.7, 0.5), None),
    "poor, overconfident": (0.5, (1.0, 1.0), None),
    "useless, overconfident": (0.05, (1.0, 1.0), None),
    "by turns": (1.0, (1.0, 0.0), 80),
}


@pytest.mark.parametrize("costs", [CPU, GPU, STEEP], ids=["cpu", "gpu", "steep"])
@pytest.mark.parametrize("world", WORLDS)
def test_never_slower_than_plain_and_close_to_the_best_fixed_budget(world, costs):
    made = World(*WORLDS[world], seed=1)
    rounds = [made.round() for _ in range(320)]
    speed, _, budgets = controlled_speed(rounds, costs)
    budget_grid = [(leaves, size) for leaves in (0, 4, 13) for size in (1, 4, 15, 60)]
    best = max(fixed_speed(rounds, costs, *budget) for budget in budget_grid)
    assert speed >= costs.plain_rate / (1 + Account.granted(320) / 320)
    assert speed >= 0.92 * best  # what caution costs
    if best < 0.9 * costs.plain_rate and world != "by turns":
        assert budgets.count(None) > 200
    if best > 1.2 * costs.plain_rate:
        assert speed > 1.15 * costs.plain_rate


def test_big_trees_where_rows_are_free_and_small_ones_where_they_are_not():
    made = World(1.0, (1.0, 0.0), None, 2)
    rounds = [made.round() for _ in range(160)]
    sizes = {}
    for name, costs in (("cpu", CPU), ("gpu", GPU)):
        budgets = [budget for budget in controlled_speed(rounds, costs)[2] if budget is not None]
        sizes[name] = [sum(column) / len(budgets) for column in zip(*budgets, strict=True)]
    assert sizes["gpu"][0] > 3 * sizes["cpu"][0]
    assert sizes["gpu"][1] > 2 * sizes["cpu"][1]


def test_it_recovers_when_the_text_becomes_easy():
    hard, easy = World(0.05, (1.0, 0.0), None, 3), World(1.0, (1.0, 0.0), None, 4)
    rounds = [hard.round() for _ in range(150)] + [easy.round() for _ in range(300)]
    budgets = controlled_speed(rounds, GPU)[2]
    assert budgets[:150].count(None) > 100
    assert budgets[-100:].count(None) == 0


def test_equal_rounds_lead_to_equal_choices():
    made = World(0.7, (1.0, 0.5), 30, 5)
    rounds = [made.round() for _ in range(120)]
    assert controlled_speed(rounds, CPU)[2] == controlled_speed(rounds, CPU)[2]
