"""The drafter learns in deployment, from what verification computes anyway, where that pays."""
