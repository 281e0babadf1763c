"""Methods that answer prompts in turn, and what is kept of every answer."""
