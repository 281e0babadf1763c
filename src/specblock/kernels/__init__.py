"""Matrix products on this processor: which there are, which are quickest, which are exact."""
