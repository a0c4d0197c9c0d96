"""A small model with random weights, and real video files."""

from pathlib import Path

import pytest

from data.synthetic import shapes
from tests.helpers.random_runs import EVERYTHING, write_run


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """videos/ and captions.csv of six clips of split test."""
    root = tmp_path_factory.mktemp("data") / "clips"
    shapes.make_dataset(str(root), seed=5, train=0, val=0, test=6)
    return root


@pytest.fixture(scope="session")
def run(tmp_path_factory, folder) -> Path:
    """The workdir of a run with all terms of a score and learned weights of the taps."""
    workdir = tmp_path_factory.mktemp("run")
    return write_run(workdir, **EVERYTHING, **{"data.root": str(folder), "data.max_frames": 4})


@pytest.fixture(scope="session")
def videos(folder) -> list[Path]:
    return sorted((folder / "videos").iterdir())
