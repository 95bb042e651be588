"""Fault tolerance: keeps a run alive, or lets it resume with the same bits."""
