"""Parallel heads: every position is predicted without the others (Medusa, ParallelSpec)."""
