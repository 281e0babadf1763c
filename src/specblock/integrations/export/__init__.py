"""A drafter in the formats of other engines."""
