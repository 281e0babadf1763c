"""Many clients at once: how fast they are served together, plainly, speculating, and by a peer."""
