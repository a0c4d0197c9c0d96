"""Weights in buckets: `port`, `model.weights` and `parity` give what local files give."""

import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs.base import get_config
from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.cli.verbs import port
from hvp_jax.parity import golden
from hvp_jax.weights import formats, initial
from tests.helpers.bucket import emulated_bucket, emulated_s3
from tests.helpers.checkpoints import random_state, sized, write
from tests.helpers.command import GOLDEN

SMALL = sized(vision_layers=1, text_layers=1)  # few arrays: each is several requests


@pytest.fixture(scope="module")
def buckets():
    with emulated_bucket() as bucket, emulated_s3():
        yield bucket


@pytest.fixture(params=["gs", "s3"])
def folder(request, tmp_path, buckets) -> Path:
    return Path(f"{request.param}://bucket") / tmp_path.name


def upload(local, folder: Path) -> Path:
    """Copies a file, or the files of a folder, to a bucket; returns the path there."""
    names = os.listdir(local) if os.path.isdir(local) else [""]
    for name in names:
        storage.upload(os.path.join(local, name).rstrip("/"), folder / local.name / name)
    return folder / local.name


def assert_equal(a: dict, b: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", ["huggingface", "open_clip_nested", "torchscript", "hvpnet"])
def test_every_format_is_read(kind, folder, tmp_path):
    local = write(tmp_path / "local", kind, random_state(SMALL, head=kind == "hvpnet"), SMALL)
    before = formats.open_checkpoint(local)
    there = formats.open_checkpoint(upload(local, folder))
    assert (there.format, there.clip_config) == (before.format, before.clip_config)
    assert_equal(there.load(), before.load())


def test_the_copy_of_a_file_is_gone_with_its_tensors(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    local = write(tmp_path / "local", "huggingface", random_state(SMALL), SMALL)
    source = formats.open_checkpoint(upload(local, folder))
    assert len(os.listdir(tmp_path / "temporary")) == 1
    source.load()
    del source
    assert os.listdir(tmp_path / "temporary") == []


def test_an_export_has_the_bytes_of_a_local_one(folder, tmp_path):
    source = write(tmp_path / "source", "huggingface", random_state(SMALL), SMALL)
    for destination in (tmp_path / "out", folder / "out"):
        port.run(source, destination, export="huggingface")
    for name in ("model.safetensors", "config.json", "model.json", "model_card.md"):
        assert storage.read_bytes(folder / "out" / name) == (tmp_path / "out" / name).read_bytes()
    with pytest.raises(UsageError, match="out exists and is not empty; name a new directory"):
        port.run(source, folder / "out", export="huggingface")


def test_a_workdir_is_ported_to_gs_and_read_again(buckets, tmp_path):
    source = write(tmp_path / "source", "hvpnet", random_state(SMALL, head=True), SMALL)
    local, there = tmp_path / "ported", Path("gs://bucket") / tmp_path.name
    for destination in (local, there):
        port.run(source, destination)
    assert storage.read_bytes(there / "model.json") == (local / "model.json").read_bytes()
    assert buckets._storage.written[-1].endswith("/model.json")  # what makes it complete
    config = get_config()
    config.model.weights = str(there)
    with pytest.raises(UsageError, match=f"{there}: its vocabulary has 100 tokens"):
        initial.find_initial_weights(config)
    assert_equal(initial.weights_of_workdir(there).load(), initial.weights_of_workdir(local).load())


def test_a_workdir_in_s3_is_refused(buckets, tmp_path):
    source = write(tmp_path / "source", "huggingface", random_state(SMALL), SMALL)
    with pytest.raises(UsageError, match=r"--destination=s3://bucket/x: .*not in s3://"):
        port.run(source, Path("s3://bucket/x"))
    storage.write_bytes("s3://bucket/run/checkpoints/1/x", b"1")
    with pytest.raises(UsageError, match=r"s3://bucket/run is a workdir: .*not in s3://"):
        initial.has_checkpoints(Path("s3://bucket/run"))


def test_mistakes_name_the_path(folder):
    with pytest.raises(UsageError, match=f"{folder}/missing: no such file or directory"):
        formats.open_checkpoint(folder / "missing")
    storage.write_bytes(folder / "empty.pt", b"")
    with pytest.raises(DataError, match=f"{folder}/empty.pt: is empty"):
        formats.open_checkpoint(folder / "empty.pt")
    storage.write_bytes(folder / "half.pt", b"PK\x03\x04half")
    with pytest.raises(DataError, match=f"{folder}/half.pt: is truncated"):
        formats.open_checkpoint(folder / "half.pt")


def test_a_golden_file_is_read(folder):
    for name in ("pytorch_small.npz", "pytorch_small.json"):
        storage.upload(GOLDEN / name, folder / name)
    arrays, metadata = golden.load_golden(folder / "pytorch_small.npz")
    expected, _ = golden.load_golden(Path(GOLDEN / "pytorch_small.npz"))
    assert_equal(arrays, expected)
    assert metadata == json.loads((GOLDEN / "pytorch_small.json").read_text())


def test_orbax_cannot_write_to_s3_yet(buckets):
    """Once it can, `data.paths` need not refuse workdirs there."""
    path = Path("s3://bucket/arrays")
    with pytest.raises(ValueError, match="should be absolute. Got s3:/bucket/arrays"):
        ocp.StandardCheckpointHandler().save(path, args=ocp.args.StandardSave({"a": np.ones(2)}))
