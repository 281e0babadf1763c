"""The prompts to measure on."""
