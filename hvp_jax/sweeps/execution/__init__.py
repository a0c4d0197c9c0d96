"""How the runs of a sweep are executed: on this machine, or by the jobs of a cluster."""
