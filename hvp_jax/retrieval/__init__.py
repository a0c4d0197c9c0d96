"""Texts and videos in Python: features, scores, and what a score consists of."""
