"""What a run writes down as it goes, and what watches it."""
