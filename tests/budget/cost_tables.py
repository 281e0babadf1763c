"""Cost tables of three machines."""

from specblock.budget.costs import (
    CostTable,
)

# milliseconds of SmolLM2-135M-Instruct in float32 and its drafter on two cores
CPU = CostTable(
    target=dict(zip((1, 4, 8, 16, 32, 64), (36, 42, 49, 59, 75, 107), strict=True)),
    draft_first={1: 6.9, 4: 7.2, 8: 7.8},
    draft_next={1: 6.4, 4: 8.5, 8: 10.6, 16: 14.7, 28: 23.6},
    overhead=3.3,
)
GPU = CostTable({1: 20, 16: 20.5, 64: 21, 96: 22}, {1: 1.5, 8: 1.6}, {1: 1.5, 24: 1.8}, 1)
STEEP = CostTable({1: 40, 2: 80}, {1: 4, 2: 5}, {1: 4, 24: 20}, 1)
