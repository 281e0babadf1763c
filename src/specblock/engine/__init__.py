"""Rounds of drafting and verification, and the objects a program uses to run them."""
