"""Feature-based losses: what the networks see on the way."""
