"""The command line's server."""
