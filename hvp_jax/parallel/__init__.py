"""Devices and processes: how steps are laid over them."""
