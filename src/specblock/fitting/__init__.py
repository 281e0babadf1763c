"""From a model to its drafter without traffic and without data: what ``specblock fit`` does."""
