"""Checkpoints of a run: written, verified, kept, restored."""
