"""Graphs: structures with their neighbour lists, as one packed batch."""
