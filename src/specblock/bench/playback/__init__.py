"""Real rounds, priced with the costs of another machine and another target."""
