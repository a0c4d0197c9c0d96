"""Tests of hvp_jax/search."""
