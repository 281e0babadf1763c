"""Ways into other programs: transformers' ``generate``, and what others serve with."""
