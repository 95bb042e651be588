"""Suites of two particles: dimers, two atoms of every element, two charges in a medium."""
