"""Monitoring: metrics of a run on the terminal, in files and in loggers."""
