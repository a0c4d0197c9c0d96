"""What a run records and reports: metrics, throughput, profiles, environment, and its watchdog."""
