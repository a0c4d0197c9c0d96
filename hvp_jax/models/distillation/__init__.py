"""Hierarchical token distillation (paper section 3.2), and other ways to halve tokens."""
