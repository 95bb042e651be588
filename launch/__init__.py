"""The command line: one verb per config class."""
