"""Drafters: one folder per method, all behind the contract of :mod:`specblock.drafters.base`."""
