"""Seeded mutations of valid files, each read in a process of its own: `make fuzz`, or `python -m tests.fuzz --help`."""
