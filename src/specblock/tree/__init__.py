"""Draft trees: how they grow, which path of one the target accepts, and what one costs."""
