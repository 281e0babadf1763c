"""What the target says about answers: features to read and distributions to learn."""
