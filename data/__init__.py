"""From files on disk to batches of arrays; knows nothing of the model."""
