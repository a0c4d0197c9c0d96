"""Devices and processes, and how steps are distributed over them."""
