"""Scores, retrieval metrics and what is reported of them."""
