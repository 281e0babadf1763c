"""Whether to update, and whether to go back."""
