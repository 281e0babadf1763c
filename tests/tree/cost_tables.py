"""Cost tables of three machines."""

from specblock.tree.cost import (
    CostTable,
)

CPU = CostTable(
    target=dict(zip((1, 4, 8, 16, 32, 64), (40, 67, 61, 66, 95, 190), strict=True)),
    draft_first={1: 12, 4: 18, 8: 22},
    draft_next={1: 10, 4: 13, 8: 16, 16: 22, 24: 30},
    overhead=4,
)
GPU = CostTable({1: 20, 16: 20.5, 64: 21, 96: 22}, {1: 1.5, 8: 1.6}, {1: 1.5, 24: 1.8}, 1)
STEEP = CostTable({1: 40, 2: 80}, {1: 4, 2: 5}, {1: 4, 24: 20}, 1)
