"""How good a drafter is, without decoding."""
