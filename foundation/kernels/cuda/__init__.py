"""The convolution on NVIDIA GPUs."""
