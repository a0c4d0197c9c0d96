"""The config: its keys, their validation, overrides, and the values that replace None."""
