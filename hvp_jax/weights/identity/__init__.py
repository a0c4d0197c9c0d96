"""What a checkpoint is, from its name, the files beside it and the names of its tensors."""
