"""A small model, a folder of videos and its index, which all tests of the folder share."""

import types

import pytest

from hvp_jax.retrieval.retriever import Retriever
from hvp_jax.search.building.build import build
from hvp_jax.search.query import Index
from tests.helpers.random_runs import EVERYTHING, write_run
from tests.helpers.search_clips import write_clip

NAMES = (*(f"clip{i}.mp4" for i in range(8)), "2024/it's.mp4", "2024/deeper/b.mp4")
LONG = "2024/long.mp4"  # 50 s
SECONDS = 20  # of a stretch
CAPTIONS = [f"a {size} {thing}" for size in ("small", "large") for thing in ("dog", "cat", "car")]


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A run on clips of at most two frames, of a model that takes three."""
    sizes = {"data.max_frames": 3, "data.max_words": 12}
    return write_run(tmp_path_factory.mktemp("run"), num_frames=2, **EVERYTHING, **sizes)


@pytest.fixture(scope="session")
def retriever(run_dir):
    return Retriever.load(run_dir, batch_size=8)


def write_videos(folder):
    """Ten clips and a long video, with captions; and what is no video, or a broken one."""
    for seed, name in enumerate(NAMES):
        write_clip(folder / name, seed, seconds=1 + seed % 3)
    write_clip(folder / LONG, 99, seconds=50)
    (folder / "broken.mp4").write_bytes(b"")
    (folder / "notes.mkv").write_text("no video")
    (folder / ".hidden.mp4").write_bytes(b"")
    (folder / "readme.md").write_text("no video")
    (folder / "clip0.txt").write_text("a first caption\n\na second  caption\n")
    rows = ["video_id,caption", *(f"clip{i},{text}" for i, text in enumerate(CAPTIONS))]
    (folder / "captions.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("collection") / "clips")


@pytest.fixture(scope="session")
def built(retriever, videos, tmp_path_factory):
    """Where the index is, and what `build` has returned."""
    uri = tmp_path_factory.mktemp("index") / "index"
    result = build(retriever, videos, uri, segment_seconds=SECONDS)
    return types.SimpleNamespace(uri=uri, result=result)


@pytest.fixture(scope="session")
def index(built, retriever):
    return Index(built.uri, retriever)
