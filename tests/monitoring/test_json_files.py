"""JSON files are written atomically."""

import json
import os

import numpy as np
import pytest

from data.errors import UsageError
from hvp_jax.monitoring import json_files


def test_json_is_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "eval.json"
    json_files.write_json(path, {"R@1": np.float64(0.1), "loss": np.nan, "taps": (1, 2)})
    expected = {"R@1": 0.1, "loss": None, "taps": [1, 2]}
    assert json.loads(path.read_text()) == expected
    with pytest.raises(TypeError):
        json_files.write_json(path, {"R@1": object()})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="cannot write .*eval.json: No space left on device"):
        json_files.write_json(path, {"R@1": 0.2})
    assert json.loads(path.read_text()) == expected
    assert os.listdir(tmp_path) == ["eval.json"]
