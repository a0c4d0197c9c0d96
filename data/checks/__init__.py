"""Checks of a data set: what is missing, broken or unusual."""
