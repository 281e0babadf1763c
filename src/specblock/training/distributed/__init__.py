"""Several processes that train one drafter."""
