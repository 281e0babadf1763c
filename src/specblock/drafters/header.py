"""The header of a safetensors file, put in order so that equal weights make equal files."""

from __future__ import annotations

import json
from pathlib import Path

_METADATA = "__metadata__"


def sort_metadata(path: Path) -> None:
    """Sort the names in the file's metadata, in place; nothing else of it changes.

    safetensors writes them in an order that it draws anew for every file.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header[_METADATA] = dict(sorted(header[_METADATA].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # the rest is padding, as the format has it
            file.seek(8)
            file.write(text.ljust(length))
