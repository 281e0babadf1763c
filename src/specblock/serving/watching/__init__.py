"""What can be seen of the server while it works."""
