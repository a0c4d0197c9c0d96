"""Scoring a split, retrieval metrics and their reports."""
