"""Layers: radial functions, equivariant linear maps, gate, interaction block. Features are component-major."""
