"""Comparison of the model's arrays with those of PyTorch."""
