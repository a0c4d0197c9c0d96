"""Weights of PyTorch: read, named, converted, written."""
