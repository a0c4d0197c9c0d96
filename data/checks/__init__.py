"""What is missing, broken or odd in a data set."""
