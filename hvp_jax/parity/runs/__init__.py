"""Comparison of a whole training run with PyTorch's."""
