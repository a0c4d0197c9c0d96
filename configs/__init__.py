"""One file per experiment, each with a `get_config`; `base.py` defines every key."""
