"""Evaluation: errors of a potential on data sets."""
