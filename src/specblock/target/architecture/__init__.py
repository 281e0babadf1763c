"""What kind of model a target is: its parts, its family, whether it can verify a tree."""
