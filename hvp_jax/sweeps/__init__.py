"""Sweeps: a set of settings, each trained with several seeds, and their table."""
