"""What the paths of flags and config keys mean, and which are refused."""

import os
import pwd
from pathlib import Path

import pytest

from data import paths
from data.errors import DataError, UsageError
from data.inputs import read_dataset
from data.records import DatasetLocation


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory and the home: with a file, a folder and a link to nothing."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to("/nowhere")
    (tmp_path / "$ODD").mkdir()
    (tmp_path / "ends ").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "folder"))
    monkeypatch.setenv("NAME", "bucket")
    monkeypatch.delenv("ODD", raising=False)
    monkeypatch.delenv("NONE", raising=False)
    return tmp_path


def test_what_a_shell_would_expand_is_expanded(folder):
    user = pwd.getpwuid(os.getuid())
    for text, expected in (
        ("~", folder),
        ("~/new", folder / "new"),
        (f"~{user.pw_name}/new", Path(user.pw_dir, "new")),
        ("$SCRATCH/new", folder / "folder/new"),
        ("${SCRATCH}", folder / "folder"),
        ("$ODD", "$ODD"),  # there is a folder of this name
        ("ends ", "ends "),
        ("new", "new"),
        ("./~new", "./~new"),
        ("C:", "C:"),
        ("run:1/new", "run:1/new"),
        ("caf\u00e9/\u732b", "caf\u00e9/\u732b"),
        ("gs://bucket", "gs://bucket"),
        ("gs://bucket/", "gs://bucket"),
        ("gs://bucket//a/./b/", "gs://bucket/a/b"),
        ("s3://my-bucket.x/a", "s3://my-bucket.x/a"),
        ("gs://$NAME/a", "gs://bucket/a"),
    ):
        assert paths.check_path("--workdir", text) == str(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("https://host/run", "https://host/run is neither on this machine nor in a bucket.*mount"),
        ("hf://name/run", "neither on this machine"),
        ("gs:/bucket/run", "is no path in a bucket; write gs://bucket/run$"),
        ("gs:///bucket/run", "is no path in a bucket; write gs://bucket/run$"),
        ("S3://bucket", "is no path in a bucket; write s3://bucket$"),
        ("gs://", "names no bucket; write gs://BUCKET/FOLDER"),
        ("gs://./", "names no bucket"),
        ("gs://bucket/a/../b", r"a bucket has no folder \.\.; write the path out"),
        ("gs://a bucket/b", "a bucket cannot be the name of a bucket"),
        ("gs://bucket/run[1]", r"has a \[; choose a name"),
        ("user@host:/run", "neither on this machine"),
        ("file:///tmp/run", "write /tmp/run"),
        ("C:\\runs", "is a path of Windows"),
        ("$NONE/run", r"no environment variable for \$NONE; export it"),
        ("${NONE}/run", r"no environment variable for \$\{NONE\}"),
        ("${NONE:-/tmp}/run", "no environment variable for"),
        ("~no-such-user/run", r"no user no-such-user; .* write \./~no-such-user"),
        ("run\r", r"'run\\r' contains '\\r'.*remove it"),
        ("run\n", "contains"),
        ("a\0b", "contains"),
        (" run", "contains ' '"),
        ("\u200brun", r"contains '\\u200b'"),
        ("'run'", "contains"),
        ("\u201crun\u201d", "contains"),
        ("a" * 300, "cannot be a path: File name too long"),
        ("file/run", "cannot be a path: Not a directory"),
        ("broken", "broken is a link to /nowhere, which does not exist"),
        ("file", "is a file; it must be a folder"),
        ("caf\udce9", "is not UTF-8 in this locale: `export PYTHONUTF8=1`"),
    ],
)
def test_what_nobody_means_is_refused_with_the_flag(folder, text, reason):
    before = sorted(os.listdir(folder))
    with pytest.raises(UsageError, match=f"^--workdir.*{reason}") as raised:
        paths.check_path("--workdir", text, "folder")
    assert "\n" not in str(raised.value)
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("home", ["", None])
def test_a_home_that_is_not_set(folder, monkeypatch, home):
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without an entry
    else:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(UsageError, match="HOME is not set"):
        paths.check_path("--workdir", "~/run")


def test_a_folder_where_a_file_is_needed(folder):
    assert paths.check_path("--golden", "file", "file") == "file"
    with pytest.raises(UsageError, match="--golden=folder is a folder; it must be a file"):
        paths.check_path("--golden", "folder", "file")


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("gs://bucket/", "file", "is a bucket; it must be a file in it"),
        ("gs://bucket/a", "local", "must be a folder on this machine's disks"),
        ("s3://bucket/a", "arrays", "not in s3://; choose a folder there"),
    ],
)
def test_a_bucket_where_it_cannot_be(text, kind, reason):
    with pytest.raises(UsageError, match=f"--workdir={text}.*{reason}"):
        paths.check_path("--workdir", text, kind)


def test_a_bucket_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(paths.BUCKET_LIBRARIES, "gs", "no_such_library")
    with pytest.raises(UsageError, match="gs://b/x needs no_such.*-r requirements-bucket.txt"):
        paths.check_path("--workdir", "gs://b/x")


def deny(monkeypatch, path: Path, mode: int) -> None:
    """Takes a permission away; root, whom tests may run as, has them all."""
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda p, m: not (Path(p) == path and m & mode) and real(p, m)
    )


def test_places_that_cannot_be_read_or_written(folder, monkeypatch):
    deny(monkeypatch, folder / "folder", os.R_OK)
    with pytest.raises(UsageError, match="data.root=.*folder cannot be read by this user"):
        paths.check_path("data.root", str(folder / "folder"))
    deny(monkeypatch, folder / "folder", os.W_OK)
    for path in (folder / "folder", folder / "folder/new/run"):
        with pytest.raises(UsageError, match="--workdir=.*folder cannot be written to by this"):
            paths.require_writable_folder("--workdir", path)
    for path, kind in (("file/run", "a file"), ("broken/run", "a link to nothing")):
        with pytest.raises(UsageError, match=f"cannot be made: .* is {kind}"):
            paths.require_writable_folder("--workdir", path)
    paths.require_writable_folder("--workdir", "new/run")
    assert not (folder / "new").exists()


def test_a_relative_path_names_the_folder_that_it_is_relative_to(folder):
    with pytest.raises(UsageError, match=f"'new' does not exist in {folder}; data.root"):
        read_dataset(DatasetLocation("folder", "new"))


def test_a_video_id_that_is_an_address(folder):
    (folder / "videos").mkdir()
    (folder / "videos/a.mp4").write_text("x")
    (folder / "captions.csv").write_text("video_id,caption\ngs://bucket/a.mp4,a cat\n")
    with pytest.raises(DataError, match=r"gs://bucket/a\.mp4 .*video_id as a path inside videos/"):
        read_dataset(DatasetLocation("folder", str(folder)))


def test_a_folder_of_videos_that_cannot_be_read(folder, monkeypatch):
    (folder / "videos").mkdir()
    (folder / "captions.csv").write_text("video_id,caption\na,a cat\n")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("videos"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="videos: cannot be read: Permission denied"):
        read_dataset(DatasetLocation("folder", str(folder)))
