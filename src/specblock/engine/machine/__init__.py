"""What this machine costs, what it does exactly, and how many threads it has to give."""
