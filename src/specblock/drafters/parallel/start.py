"""Parallel heads that draft before their first gradient step.

Trunk and input layer start as SpecBlock's do; the heads are zero, so at first every position
proposes the same.
"""

from specblock.drafters.specblock.start import start

__all__ = ["start"]
