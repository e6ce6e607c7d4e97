"""Response-based losses: what the networks answer."""
