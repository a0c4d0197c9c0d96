"""Numbers of PyTorch beside ours."""
