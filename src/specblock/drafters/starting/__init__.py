"""Drafters that draft before their first gradient step, in closed form."""
