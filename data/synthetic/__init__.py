"""Built-in clips of moving shapes with captions."""
