"""The equivariant convolution: one operator, several backends."""
