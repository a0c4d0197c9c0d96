"""The manifest of a sweep."""

import json

import pytest

from data.errors import DataError, UsageError
from hvp_jax.sweeps import manifest

SWEEP = manifest.Manifest(
    "taps", "all", (("all", {}), ("last", {"model.taps": [4], "model.weights": ""})), (0, 1)
)


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest.write(tmp_path / "new" / "sweep", SWEEP)
    assert manifest.read(tmp_path / "new" / "sweep") == SWEEP
    assert SWEEP.names() == ["all", "last"]
    folder = manifest.run_folder(tmp_path, "last", 1)
    assert folder == tmp_path / "runs" / "last" / "seed-1"


def test_a_folder_without_a_sweep_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="manifest.json does not exist"):
        manifest.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": []},
        {"seeds": ["0"]},
        {"base": "other"},
        {"settings": [{"name": "all"}]},
        {"settings": [{"name": 1, "overrides": {}}]},
        {"settings": [{"name": "all", "overrides": {}}] * 2},
    ],
)
def test_a_damaged_manifest_is_a_data_error(tmp_path, change):
    manifest.write(tmp_path, SWEEP)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="manifest.json is not the manifest of a sweep"):
        manifest.read(tmp_path)
    path.write_text('{"sweep": "taps", "ba')
    with pytest.raises(DataError, match="manifest.json is not the manifest of a sweep"):
        manifest.read(tmp_path)
