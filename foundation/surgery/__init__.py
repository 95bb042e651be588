"""Surgery: a potential changed without training, by level of theory, element, reference or start."""
