"""From clips to batches of arrays."""
