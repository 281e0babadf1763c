"""``specblock bench`` and what else is measured under it."""
