"""Simulations of many structures at once: predictions, relaxations and molecular dynamics."""
