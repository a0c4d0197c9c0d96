"""PyTorch checkpoints: reading, naming, conversion and export."""
