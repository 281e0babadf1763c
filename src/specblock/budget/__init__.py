"""How much to draft and to verify, from what it costs and what it brings."""
