"""Benchmarks: each measures beside its peer in the same run and writes runs/bench/<name>.json."""
