"""The losses of every kind of drafter, over whole sequences at once."""
