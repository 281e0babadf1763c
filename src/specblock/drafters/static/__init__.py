"""Drafters whose forwards have static shapes, recorded on a GPU."""
