"""The training step, compiled by TPU's own compiler for a slice that is not here."""
