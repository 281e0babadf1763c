"""The drafter without a network: what followed the last time the text went like this."""
