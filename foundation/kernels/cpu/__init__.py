"""The convolution in generated C: code, compiler, calls."""
