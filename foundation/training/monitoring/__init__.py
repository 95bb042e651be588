"""Monitoring: what a run says of itself, on the screen, in files and to loggers."""
