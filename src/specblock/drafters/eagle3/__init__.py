"""The EAGLE-3 drafter: one layer that feeds on its own output, one token per forward."""
