"""A potential as one compiled library, without Python and torch."""
