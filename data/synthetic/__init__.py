"""The built-in data set: synthetic clips of moving shapes, with captions."""
