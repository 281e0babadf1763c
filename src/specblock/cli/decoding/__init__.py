"""Verbs that answer prompts."""
