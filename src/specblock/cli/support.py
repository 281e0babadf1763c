"""What every verb needs: errors in one sentence, the Speculator, text from standard input."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from specblock.cli.flags import expanded
from specblock.errors import SpecBlockError

USER_ERROR, INTERRUPTED = 2, 130


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command: settings among its parameters become options."""
    return guarded(expanded(function))


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command its exit codes: 2 for what the user can mend, 130 for Ctrl-C."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        if sys.stdout is None:  # closed by who started us
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        try:
            function(*args, **kwargs)
        except SpecBlockError as error:
            typer.echo(f"specblock: {error}", err=True)
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader (head, less) has gone: nobody is left to tell, not even Python's own
            # flush at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            typer.echo("specblock: The disk that the answer goes to is full.", err=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(USER_ERROR) from None

    return command


def say_step(step: str) -> None:
    """What takes long while loading: dim at a terminal, a line of the log elsewhere."""
    if sys.stderr.isatty():
        typer.secho(f"{step} ...", err=True, dim=True)
    else:
        logging.getLogger("specblock").info("%s ...", step)


def read_prompt(argument: str | None) -> str:
    """The prompt from the argument, or from standard input for none or ``-``.

    Raises:
        SpecBlockError: there is neither, the text is empty, or it is not UTF-8.
    """
    text = argument
    if text is None or text == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise SpecBlockError("There is no prompt: give it as an argument or on standard input.")
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            raise SpecBlockError("Standard input is not UTF-8 text.") from None
    try:
        text.encode("utf-8")  # an argument may hold bytes that are no text
    except UnicodeEncodeError:
        raise SpecBlockError("The prompt is not UTF-8 text.") from None
    if not text.strip():
        raise SpecBlockError("The prompt is empty: give it as an argument or on standard input.")
    return text


def messages_of(prompt: str, system: str | None) -> list[dict[str, str]]:
    """A one-turn conversation in chat form."""
    lead = [] if system is None else [{"role": "system", "content": system}]
    return [*lead, {"role": "user", "content": prompt}]


def finite(value: float | None) -> float | None:
    """A number that JSON can say, or null."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return value
