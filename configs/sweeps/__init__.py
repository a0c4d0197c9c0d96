"""One file per sweep, each with a `get_sweep`; `base.py` has the helpers."""
