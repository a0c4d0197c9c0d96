"""Clips decoded once into ArrayRecord files."""
