"""Relation-based losses: how the samples of a batch lie to each other."""
