"""The verbs: one module each, with a function `run`."""
