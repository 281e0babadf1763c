"""Prompts and the target's answers to them: read, asked for, masked, kept on disk."""
