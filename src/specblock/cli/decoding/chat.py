"""``specblock chat``: a conversation at the terminal or from a pipe."""

from __future__ import annotations

import io
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from specblock.cli import options
from specblock.cli.decoding.meanwhile import Meanwhile
from specblock.cli.flags import Flags
from specblock.cli.support import verb
from specblock.config import GenerationConfig
from specblock.errors import SpecBlockError

if TYPE_CHECKING:
    from specblock.engine.speculator import Speculator

HELP = """\
/help    show this
/reset   forget the conversation
/exit    leave (so does Ctrl-D)
Ctrl-C stops the answer that is being written."""


@verb
def chat(
    *,
    system: options.System = None,
    config: Annotated[GenerationConfig, Flags(max_new_tokens=512)],
    place: options.Speculating,
    adapt: options.Adapt = None,
) -> None:
    """Talk with the model; /help lists the commands."""
    speculator = place.open(adapt=adapt, where="idle")
    try:
        Conversation(speculator, config, system).run()
    finally:
        if adapt is not None:
            speculator.close()


class Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(self, speculator: Speculator, config: GenerationConfig, system: str | None):
        self.speculator = speculator
        self.config = config
        self.lead = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self.lead)
        self.at_terminal = sys.stdin.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # whatever bytes come in, it goes on

    def run(self) -> None:
        """Read and answer until the input ends or /exit."""
        if self.at_terminal:
            import readline  # noqa: F401  (arrow keys and history for input())

            typer.secho(HELP, dim=True)
        while (line := self._read()) is not None:
            line = line.strip()
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        """The next line; None at the end of the input."""
        try:
            with Meanwhile(self.speculator.adaptation):
                return input("> " if self.at_terminal else "")
        except EOFError:
            return None
        except UnicodeDecodeError:
            raise SpecBlockError("Standard input is not UTF-8 text.") from None
        except KeyboardInterrupt:
            if not self.at_terminal:
                raise
            typer.echo("\n(/exit leaves)")
            return ""

    def _command(self, line: str) -> bool:
        """Carry out a command; False when it is time to leave."""
        if line in ("/exit", "/quit"):
            return False
        if line == "/reset":
            self.messages = list(self.lead)
            typer.echo("(forgotten)")
        elif line == "/help":
            typer.echo(HELP)
        else:
            typer.echo(f"There is no command {line.split()[0]}; /help lists them.", err=True)
        return True

    def _answer(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})
        said: list[str] = []
        try:
            with closing(self.speculator.stream(list(self.messages), self.config)) as chunks:
                for chunk in chunks:
                    said.append(chunk.text)
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            typer.echo(" [stopped]", nl=False)
        except SpecBlockError as error:
            if not self.at_terminal:
                raise
            self.messages.pop()
            typer.echo(f"{error} (/reset forgets the conversation.)", err=True)
            return
        typer.echo()
        # A stopped answer stays in the conversation as far as it was read.
        self.messages.append({"role": "assistant", "content": "".join(said)})
