"""JSON schemas that no finite JSON fulfils."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

__all__ = ["endless"]


def endless(schema: Mapping[str, Any]) -> bool:
    """Whether every value of ``schema`` must contain another one like it, and so on.

    Choices are not looked into: where one leads on without end, another may not.
    """
    needed: dict[int, list[int]] = {}
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if id(part) not in needed:
            found = list(_needed(part, schema))
            needed[id(part)] = [id(other) for other in found]
            waiting += found
    try:
        TopologicalSorter(needed).prepare()
    except CycleError:
        return True
    return False


def _needed(part: Any, root: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas of which any value of ``part`` needs a value."""
    # below another $id the same references mean something else
    if not isinstance(part, dict) or (part is not root and "$id" in part):
        return
    if "$ref" in part:  # older drafts read nothing beside it
        yield from _referred(part["$ref"], root)
        return
    yield from _list(part.get("allOf"))
    if part.get("type") == "object":
        properties = part.get("properties")
        if isinstance(properties, dict):
            names = [name for name in _list(part.get("required")) if isinstance(name, str)]
            yield from (properties[name] for name in names if name in properties)
    least = part.get("minItems")
    if part.get("type") == "array" and isinstance(least, int | float):
        first = _list(part.get("prefixItems"))
        yield from first[: max(0, int(least))]
        if least > len(first):
            yield part.get("items")


def _referred(reference: Any, root: Mapping[str, Any]) -> Iterator[Any]:
    """What a path within the document leads to."""
    found: Any = root
    if not isinstance(reference, str) or reference.partition("/")[0] != "#":
        return
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            return
    yield found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
