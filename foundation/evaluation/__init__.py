"""Errors of a potential on a data set, and the report of them."""
