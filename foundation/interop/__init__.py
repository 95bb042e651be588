"""Interoperation: other programs' units, signs and interfaces."""
