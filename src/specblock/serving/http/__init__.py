"""Connections: who may ask, how much of a request is read, how an answer is sent."""
