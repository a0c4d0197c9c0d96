"""The optimizers, their schedules, and which parameters learn at which rate."""
