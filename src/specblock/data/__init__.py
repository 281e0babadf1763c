"""Prompt sets that ship with the program, as paths."""

from pathlib import Path

__all__ = ["DEMO_PROMPTS", "OWN_PROMPTS", "SHIFTING_STREAM"]

DEMO_PROMPTS = Path(__file__).parent / "demo_prompts.jsonl"
OWN_PROMPTS = Path(__file__).parent / "prompts.jsonl"
SHIFTING_STREAM = Path(__file__).parent / "shifting_stream.jsonl"  # its domain changes on the way
