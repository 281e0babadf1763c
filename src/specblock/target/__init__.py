"""The model being accelerated: loading, its key/value cache, and verifying trees with it."""
