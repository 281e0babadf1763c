"""One update of the drafter's weights, wherever it runs."""
