"""The training loop: steps, their order, checkpoints, figures, an end when asked for."""
