"""Policies of adaptation against each other on a stream of prompts."""
