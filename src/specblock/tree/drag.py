"""What a round costs here and now, where the machine is not the one that was measured.

Costs come from a table, so that equal rounds lead to equal choices. A table may be wrong: another
process holds a core, and many rows then cost more plain steps than they did. The clock sees it.
"""

from __future__ import annotations

from specblock.tree.averages import Recent


class Drag:
    """How many times more plain steps than by the table the rounds that draft take.

    Both kinds of rounds are compared with the table, and with each other: a machine that is slower
    for all rounds alike drags none.
    """

    BELIEVED = 1.25  # times the table: less is noise, and choices follow the table alone
    ENOUGH = 4  # rounds of a kind, before which nothing is said
    STALE = 32  # rounds after which plain ones are to be seen again

    def __init__(self) -> None:
        self._seconds = {kind: Recent(0.9, 0.0, 0.0) for kind in (True, False)}
        self._seen = {True: 0, False: 0}
        self._since_plain = 0

    def add(self, drafted: bool, seconds: float, by_table: float) -> None:
        """A round, whether it drafted, and its seconds by the clock and by the table."""
        self._seconds[drafted].add(seconds, by_table)
        self._seen[drafted] += 1
        self._since_plain = self._since_plain + 1 if drafted else 0

    @property
    def factor(self) -> float:
        """1, or how many times the table's costs a drafting round takes."""
        if min(self._seen.values()) < self.ENOUGH:
            return 1.0
        found = self._seconds[True].ratio / self._seconds[False].ratio
        return found if found > self.BELIEVED else 1.0

    @property
    def wants_plain(self) -> bool:
        """Whether a plain round is due, to compare drafting ones with: they are slower than the
        table says, and it is not known whether plain ones are too."""
        if self._seen[True] < self.ENOUGH or self._seconds[True].ratio <= self.BELIEVED:
            return False
        return self._seen[False] < self.ENOUGH or self._since_plain >= self.STALE
