"""Files and objects: the same functions on this machine's disks and in an emulated bucket."""

import errno
import os
import threading

import pytest

from data.storage import files, versions
from data.storage.path import Path, absolute, is_bucket
from tests.helpers.bucket import emulated_bucket, emulated_s3, no_fault, unavailable_for


@pytest.fixture(scope="module")
def bucket():
    with emulated_bucket() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def s3():
    with emulated_s3() as url:
        yield url


@pytest.fixture(params=["disk", "gs", "s3"])
def folder(request, tmp_path, bucket):
    """A new folder on the disk and in the buckets."""
    if request.param == "disk":
        return Path(tmp_path)
    if request.param == "s3":
        request.getfixturevalue("s3")
    return Path(f"{request.param}://bucket") / tmp_path.name


def test_what_is_written_is_read(folder):
    files.write_bytes(folder / "a", b"\x00one")
    with files.open_atomically(folder / "b", "w", encoding="utf-8") as file:
        file.write("zwei\r\nü")
    assert files.read_bytes(folder / "a") == b"\x00one"
    assert files.read_text(folder / "b") == "zwei\nü"
    assert files.names(folder) == ["a", "b"]
    assert files.stat(folder / "a").size == 4
    assert files.stat(folder / "a").mtime_ns > 1.7e18


def test_an_exception_while_writing_changes_nothing(folder):
    files.write_bytes(folder / "a", b"old")
    with pytest.raises(RuntimeError), files.open_atomically(folder / "a", "wb") as file:
        file.write(b"new")
        raise RuntimeError
    assert files.read_bytes(folder / "a") == b"old"
    assert files.names(folder) == ["a"]


def test_of_many_that_create_a_file_one_does(folder):
    created = []
    contents = [str(i).encode() for i in range(8)]
    threads = [
        threading.Thread(
            target=lambda c=c: created.append(c) if files.create(folder / "x", c) else None
        )
        for c in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert files.read_bytes(folder / "x") == created[0]
    assert files.names(folder) == ["x"]


def test_a_local_copy_has_the_name_and_content(folder):
    files.write_bytes(folder / "clip.mp4", b"film")
    with files.local_copy(folder / "clip.mp4") as local:
        assert os.path.basename(local) == "clip.mp4"
        with open(local, "rb") as file:
            assert file.read() == b"film"
    assert os.path.exists(local) is not is_bucket(folder)


def test_what_a_library_writes_by_its_name(folder):
    with files.local_output(folder / "a.bin") as local:
        assert os.path.basename(local) == "a.bin"
        with open(local, "wb") as file:
            file.write(b"1")
    assert files.read_bytes(folder / "a.bin") == b"1"
    assert os.path.exists(local) is not is_bucket(folder)


def test_a_part_of_a_file_is_read(folder):
    files.write_bytes(folder / "a", bytes(range(100)))
    with files.open_read(folder / "a") as file:
        file.seek(90)
        assert file.read(3) == bytes([90, 91, 92])


def test_removed_is_gone_and_missing_is_no_error(folder):
    files.write_bytes(folder / "a", b"1")
    files.make_folder(folder / "deep" / "er")
    files.write_bytes(folder / "deep" / "er" / "b", b"2")
    files.remove(folder / "a")
    files.remove_tree(folder / "deep")
    files.remove(folder / "a")
    files.remove_tree(folder / "deep")
    assert not (folder / "a").exists()
    assert not (folder / "deep").exists()


def test_upload_replaces(folder, tmp_path):
    (tmp_path / "source.bin").write_bytes(b"x" * 100_000)
    files.write_bytes(folder / "a", b"old")
    files.upload(tmp_path / "source.bin", folder / "a")
    assert files.read_bytes(folder / "a") == b"x" * 100_000


def test_missing_files_are_named(folder):
    for read in (files.read_bytes, files.stat, files.names):
        with pytest.raises(FileNotFoundError) as caught:
            read(folder / "missing")
        assert caught.value.strerror


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_an_object_is_replaced_only_while_it_is_the_one_that_was_read(bucket, s3, kind):
    path = f"{kind}://bucket/version"
    files.write_bytes(path, b"first")
    mine, theirs = versions.read(path), versions.read(path)
    assert mine.content == b"first"
    assert versions.replace(path, b"theirs", theirs.generation)
    assert not versions.replace(path, b"mine", mine.generation)
    assert versions.read(path).content == b"theirs"
    last = versions.read(path)
    files.remove(path)
    assert not versions.replace(path, b"mine", last.generation)
    with pytest.raises(FileNotFoundError):
        versions.read(path)


def test_what_others_write_is_seen_at_once(bucket):
    path = Path("gs://bucket/shared")
    files.write_bytes(path / "a", b"1")
    assert files.names(path) == ["a"]
    # Another host does it, of which this process does not know.
    bucket.copy("shared/a", "shared/b")
    assert files.names(path) == ["a", "b"]


def test_a_bucket_that_is_unavailable_for_seconds_is_waited_for(bucket):
    bucket.fault = unavailable_for(3)
    files.write_bytes("gs://bucket/late", b"1")
    assert files.read_bytes("gs://bucket/late") == b"1"


@pytest.mark.parametrize(
    ("status", "number", "words"),
    [(401, errno.EACCES, "credentials"), (403, errno.EACCES, "right"), (400, errno.EIO, "400")],
)
def test_a_refusal_is_one_line(bucket, status, number, words):
    bucket.fault = lambda method, url: status
    for action in (
        lambda: files.read_bytes("gs://bucket/a/b"),
        lambda: files.write_bytes("gs://bucket/a/b", b"1"),
        lambda: files.create("gs://bucket/a/b", b"1"),
        lambda: files.names("gs://bucket/a"),
    ):
        with pytest.raises(OSError) as caught:
            action()
        assert caught.value.errno == number
        assert words in caught.value.strerror
        assert "\n" not in caught.value.strerror
        assert "gs://bucket" in caught.value.filename
    bucket.fault = no_fault


def test_no_such_bucket_is_named():
    with pytest.raises(FileNotFoundError, match="no such object or bucket"):
        files.write_bytes("gs://elsewhere/a", b"1")


def test_a_path_in_a_bucket_is_absolute():
    assert str(absolute("gs://bucket/a/../b")) == "gs://bucket/a/../b"
    assert str(absolute("a")) == os.path.abspath("a")
