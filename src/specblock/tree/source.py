"""Where the token of a draft node comes from."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["BUCKETS", "Source"]

BUCKETS = 4  # of predicted ranks, and of lengths of matches


class Source(IntEnum):
    """Who proposed a node, and what the network had to say of a copied one."""

    NETWORK = 0
    COPIED = 1  # from the text so far, where the network was not asked
    AGREED = 2  # from the text so far, and the network proposes the same
    ALONE = 3  # from the text so far, where the network proposes something else
    REMEMBERED = 4  # the same three, from an earlier text
    REMEMBERED_AGREED = 5
    REMEMBERED_ALONE = 6

    @property
    def agreed(self) -> Source:
        """What a copy becomes where the network proposes the same."""
        return Source.REMEMBERED_AGREED if self >= Source.REMEMBERED else Source.AGREED

    @property
    def alone(self) -> Source:
        """What a copy becomes where the network proposes something else."""
        return Source.REMEMBERED_ALONE if self >= Source.REMEMBERED else Source.ALONE

    @property
    def from_network(self) -> bool:
        """Whether the network proposed the node, alone or with a text."""
        return self in (Source.NETWORK, Source.AGREED, Source.REMEMBERED_AGREED)
