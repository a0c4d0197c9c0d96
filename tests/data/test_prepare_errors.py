"""`prepare` gives the real reason of a failure."""

import errno

import pytest
import tensorflow_datasets as tfds

from data.errors import UsageError
from data.records import Clip
from data.shards import prepare, writer
from data.video import inspection
from tests.helpers.clips import numbered, write_video
from tests.helpers.prepare_runs import FRAMES, SIZE


@pytest.fixture
def clips(tmp_path) -> list[Clip]:
    path = write_video(tmp_path / "a.mp4", numbered(4), rate=1)
    return [Clip("a", str(path), ("text",), "train")]


def test_the_reason_of_a_failure_is_not_always_the_disk(clips, tmp_path, monkeypatch):
    """A bug in the decoding process keeps its own reason and its traceback."""
    monkeypatch.setattr(inspection, "decode_checked", raise_type_error)
    with pytest.raises(RuntimeError, match=r"^TypeError: got an unexpected keyword") as raised:
        prepare.prepare(clips, str(tmp_path / "shards"), SIZE, FRAMES, workers=1)
    assert "in raise_type_error" in "".join(raised.value.__notes__)


def raise_type_error(request):
    raise TypeError("got an unexpected keyword argument")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/full", r"No space left on device; free some disk space and run `prepare` again"),
        ("/nowhere/x", "No such file or directory; check its disk"),
    ],
)
def test_a_shard_that_cannot_be_written(path, reason):
    features = tfds.features.FeaturesDict({"x": tfds.features.Text()})
    with pytest.raises(UsageError, match=f"^cannot write {path}: {reason}$"):
        writer.write_records(path, [("a", {"x": "text"})], features)


def test_an_error_outside_of_the_destination_is_not_its_error(clips, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(prepare, "_require_disk_space", fail)
    with pytest.raises(OSError, match="Too many open files"):
        prepare.prepare(clips, str(tmp_path / "shards"), SIZE, FRAMES, workers=1)
    (tmp_path / "file").write_text("x")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="cannot write shards to .*file"):
        prepare.prepare(clips, str(tmp_path / "file" / "shards"), SIZE, FRAMES, workers=1)


def test_another_run_in_the_same_folder_is_named(clips, tmp_path, monkeypatch):
    destination = tmp_path / "shards"

    def moved(tasks, *arguments, **options):
        raise FileNotFoundError(
            2, "No such file or directory", str(tasks[0].staging.folder / "x.partial")
        )

    monkeypatch.setattr(writer, "write_shards", moved)
    with pytest.raises(UsageError, match="another `prepare` works there"):
        prepare.prepare(clips, str(destination), SIZE, FRAMES, workers=1)
