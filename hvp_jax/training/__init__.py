"""The training step, the optimizer and the loop."""
