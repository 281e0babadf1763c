"""Errors whose message is one sentence that says what to do.

The command line prints the message to stderr and exits with code 2; a library user catches
:class:`SpecBlockError` to tell a mistake in the input from a defect in the program.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContextError",
    "FeatureLayersError",
    "ModelError",
    "RefusedByTemplateError",
    "SpecBlockError",
    "VocabularyMapError",
]


class SpecBlockError(Exception):
    """A condition that the user can mend; the message says how."""


class ConfigError(SpecBlockError):
    """A setting has an unknown name or a value that makes no sense."""


class ModelError(SpecBlockError):
    """A target model cannot be found, fetched, read or placed on the device."""


class RefusedByTemplateError(ModelError):
    """The target's chat template refuses a conversation; ``words`` are the template's own."""

    def __init__(self, words: str, where: str = ""):
        lead = f"{where}: the" if where else "The"
        super().__init__(
            f"{lead} target's chat template refuses a conversation: {words}; templates often want "
            "user and assistant in turns and no system message, so change or drop what it refuses."
        )
        self.words = words


class CheckpointError(SpecBlockError):
    """A drafter's checkpoint is broken, or does not fit the target."""


class FeatureLayersError(CheckpointError):
    """A drafter names layers that its target has no outputs of."""


class VocabularyMapError(CheckpointError):
    """A drafter's vocabulary maps contradict each other."""


class ContextError(SpecBlockError):
    """A prompt is empty or longer than the model's context."""
