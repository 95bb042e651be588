"""Suites of cubic crystals: equation of state, elastic constants, phonons, force constants against distance."""
