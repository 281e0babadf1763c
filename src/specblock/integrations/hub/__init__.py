"""Drafters on the Hugging Face hub."""
