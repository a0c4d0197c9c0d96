"""Where the rows of a run's metrics are: in one file, or in a bucket in parts."""
