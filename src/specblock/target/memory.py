"""How much memory texts may take."""

from __future__ import annotations

import psutil
import torch

__all__ = ["most_memory"]

SHARE = 1 / 8  # of what is free: a laptop goes on being used for other things


def most_memory(device: torch.device) -> int:
    """Bytes for the caches of texts on a device, by what is free there now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available  # what files are cached in counts as free
    return int(SHARE * free)
