"""Ways out: other programs' units, signs and interfaces."""
