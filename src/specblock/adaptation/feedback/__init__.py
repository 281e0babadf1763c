"""What decoding teaches, collected and kept."""
