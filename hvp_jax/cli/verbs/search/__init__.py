"""The verbs of an index: making it, and searching it."""
