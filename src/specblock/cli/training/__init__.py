"""Verbs that make, judge and convert drafters."""
