"""What an earlier run has written and a later one reads: checked field by field, one form of words.

A file of another version, of something else, or half a file must neither end in a traceback nor be
taken for what it is not. The sentence names the file, the field, what is wrong and what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from specblock.errors import CheckpointError

__all__ = ["Stored", "differing", "explain", "restoring"]


class Stored(BaseModel):
    """Base of what is stored: fields and their types. Further fields are a later version's."""

    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True, strict=True)

    @classmethod
    def of(cls, values: Any, path: Path, advice: str) -> Self:
        """Check what was read from ``path``; ``advice`` ends the sentence.

        Raises:
            CheckpointError: a field is missing or of another type.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise CheckpointError(f"{path} {explain(error)}; {advice}.") from None

    @classmethod
    def read(cls, path: Path, advice: str) -> Self:
        """The same from a JSON file.

        Raises:
            CheckpointError: the file cannot be read, or as :meth:`of`.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            words = f"cannot be read ({error.strerror or error})"
        except ValidationError as error:
            words = explain(error)
        raise CheckpointError(f"{path} {words}; {advice}.")


@contextmanager
def restoring(path: Path, name: str, advice: str = "give another folder") -> Iterator[None]:
    """Say which field of ``path`` cannot be put back, where what is in it does not fit.

    Raises:
        CheckpointError: for whatever the restoring raises over a wrong name, shape or type.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        words = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
        raise CheckpointError(
            f"{path} is something else: {name} does not fit ({words}); {advice}."
        ) from error


def explain(error: ValidationError) -> str:
    """The first complaint of pydantic as a predicate of the file."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"lacks the field '{name}'"
    if first["type"] == "json_invalid":
        return "is not whole JSON"
    given = repr(first["input"])
    given = given if len(given) <= 40 else given[:37] + "..."
    wanted = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"is something else: {f'{name} is {given}' if name else f'it is {given}'}, not {wanted}"


def differing(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], later: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """What two identities differ in, and what the other does not say.

    Args:
        mine, theirs: this run's and a stored state's.
        later: names that states of earlier versions lack; that is no difference.
    """
    unsaid = [name for name in mine if name in later and name not in theirs]
    names = [*mine, *(name for name in theirs if name not in mine)]
    absent = object()
    changed = [n for n in names if mine.get(n, absent) != theirs.get(n, absent)]
    return [name for name in changed if name not in unsaid], unsaid
