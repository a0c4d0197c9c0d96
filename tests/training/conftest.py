"""The data set of the runs of `train`."""

import pytest

from data.synthetic import shapes


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of real H.264 files: 24 for training, 6 for validation, 10 for testing."""
    root = tmp_path_factory.mktemp("data") / "clips"
    shapes.make_dataset(str(root), seed=5, train=24, val=6, test=10)
    return root
