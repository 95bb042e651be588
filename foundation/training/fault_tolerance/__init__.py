"""Fault tolerance: what keeps a run alive or lets it go on with the same bits."""
