"""An OpenAI-compatible server on top of the engine; needs the extra ``specblock[serve]``."""
