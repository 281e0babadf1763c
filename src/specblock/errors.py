"""Errors whose message is one sentence that says what to do.

The command line prints the message to stderr and exits with code 2; a library user catches
:class:`SpecBlockError` to tell a mistake in the input from a defect in the program.
"""

__all__ = ["CheckpointError", "ConfigError", "ContextError", "ModelError", "SpecBlockError"]


class SpecBlockError(Exception):
    """A condition that the user can mend; the message says how."""


class ConfigError(SpecBlockError):
    """A setting has an unknown name or a value that makes no sense."""


class ModelError(SpecBlockError):
    """A target model cannot be found, fetched, read or placed on the device."""


class CheckpointError(SpecBlockError):
    """A drafter's checkpoint is broken, or does not fit the target."""


class ContextError(SpecBlockError):
    """A prompt is empty or longer than the model's context."""
