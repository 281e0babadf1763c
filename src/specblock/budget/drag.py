"""What a round costs here and now, where the machine is not the one that was measured.

Costs come from a table, so that equal rounds lead to equal choices. A table may be wrong: another
process holds a core, and many rows then cost more plain steps than they did. The clock sees it.
"""

from __future__ import annotations

import statistics
from collections import deque


class Drag:
    """How many times more plain steps than by the table the rounds that draft take.

    Both kinds of rounds are compared with the table, and with each other: a machine that is slower
    for all rounds alike drags none. Compared are medians: the first rounds of a process pay for
    what is made once, and a round now and then for something else that runs.
    """

    BELIEVED = 1.25  # times the table: less is noise, and choices follow the table alone
    RECENT, ENOUGH = 9, 4  # rounds of a kind that are compared, and before which nothing is said
    STALE = 32  # rounds after which plain ones are to be seen again

    def __init__(self) -> None:
        self._slowness = {kind: deque[float](maxlen=self.RECENT) for kind in (True, False)}
        self._since_plain = 0

    def add(self, drafted: bool, seconds: float, by_table: float) -> None:
        """A round, whether it drafted, and its seconds by the clock and by the table."""
        self._slowness[drafted].append(seconds / by_table)
        self._since_plain = self._since_plain + 1 if drafted else 0

    def _typical(self, drafted: bool) -> float | None:
        """Seconds by the clock by those of the table; None before it can be said."""
        slowness = self._slowness[drafted]
        return statistics.median(slowness) if len(slowness) >= self.ENOUGH else None

    @property
    def factor(self) -> float:
        """1, or how many times the table's costs a drafting round takes."""
        drafting, plain = self._typical(True), self._typical(False)
        if drafting is None or plain is None:
            return 1.0
        found = drafting / plain
        return found if found > self.BELIEVED else 1.0

    @property
    def wants_plain(self) -> bool:
        """Whether a plain round is due, to compare drafting ones with: they are slower than the
        table says, and it is not known whether plain ones are too."""
        drafting = self._typical(True)
        if drafting is None or drafting <= self.BELIEVED:
            return False
        return self._typical(False) is None or self._since_plain >= self.STALE
