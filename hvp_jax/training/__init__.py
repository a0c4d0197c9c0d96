"""The training step, the optimiser and the training loop."""
