"""A quarter of an hour on a GPU: stages that are rehearsed on a CPU, small, with the same code."""
