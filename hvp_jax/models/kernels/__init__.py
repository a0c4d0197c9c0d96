"""Pallas kernels for TPUs, each with its gradient."""
