"""What makes a drafter useless without a word: checks of a drafter, its target and this machine."""
