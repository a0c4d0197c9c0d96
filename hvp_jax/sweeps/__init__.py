"""Sweeps: sets of runs that differ in a few keys, and the table that compares them."""
