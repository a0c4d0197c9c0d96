"""One file an experiment, each with `get_config`; `base.py` holds every key."""
