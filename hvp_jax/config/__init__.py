"""The config: its keys, their checks, overrides, and what None becomes."""
