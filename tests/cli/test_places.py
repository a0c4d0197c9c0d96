"""Every verb looks at the paths it is given, and prints in any locale."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

from data.storage import files as storage
from hvp_jax.cli import main
from hvp_jax.config.overrides import load
from hvp_jax.config.saved import to_json
from hvp_jax.config.schema import PATHS, flatten
from tests.helpers.bucket import emulated_bucket
from tests.helpers.clips import write_video
from tests.helpers.command import ROOT

FOLDER = f"--config={ROOT / 'configs' / 'folder.py'}"
CONFIG_VERBS = {"train": ("--workdir=run",), "eval": ("--workdir=run",)}
CONFIG_VERBS |= {"doctor": (), "prepare": (), "bench": ()}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bucket():
    with emulated_bucket() as bucket:
        yield bucket


def refused(capfd, *arguments: str) -> str:
    assert main.main(list(arguments)) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("verb", CONFIG_VERBS)
def test_every_key_that_is_a_path_is_checked(home, fake, capfd, verb):
    seen = []
    fake(lambda **values: seen.append(values) or {})
    for key in PATHS:
        url = refused(capfd, verb, FOLDER, *CONFIG_VERBS[verb], f"--config.{key}=https://host/x")
        assert url.startswith(f"error: config.{key}=https://host/x is neither on this machine nor")
        for text, path in (("~/x", str(home / "x")), ("gs://bucket/x/", "gs://bucket/x")):
            assert main.main([verb, FOLDER, *CONFIG_VERBS[verb], f"--config.{key}={text}"]) == 0
            assert flatten(seen[-1]["config"])[key] == path
            capfd.readouterr()  # the empty result
    assert os.listdir(home) == []


@pytest.mark.parametrize(
    ("flag", "arguments"),
    [
        ("--workdir", ["train", FOLDER]),
        ("--workdir", ["eval"]),
        ("--workdir", ["doctor", FOLDER]),
        ("--workdir", ["bench", FOLDER]),
        ("--workdir", ["parity", "--golden=x"]),
        ("--golden", ["parity"]),
        ("--source", ["parity"]),
        ("--source", ["port", "--destination=x"]),
        ("--destination", ["port", "--source=x"]),
        ("--config", ["prepare"]),
        ("--index", ["serve"]),
        ("--weights", ["serve", "--index=x"]),
    ],
)
def test_every_flag_that_is_a_path_is_checked(home, fake, capfd, flag, arguments):
    fake(lambda **values: {})
    for text in ("https://host/x", "gs://bucket/../x", "gs:/bucket", "$NONE_SUCH/x", "x\r"):
        assert f"error: {flag}=" in refused(capfd, *arguments, f"{flag}={text}")
    assert os.listdir(home) == []


def test_flags_may_name_a_bucket(home, fake, capfd):
    seen = []
    fake(lambda **values: seen.append(values) or {})
    for verb, name, *flags in (
        ("train", "workdir", FOLDER),
        ("doctor", "workdir", FOLDER),
        ("bench", "workdir", FOLDER),
        ("report", "workdir"),
        ("parity", "golden"),
        ("parity", "source"),
        ("port", "source", "--destination=x"),
        ("port", "destination", "--source=x"),
    ):
        assert main.main([verb, *flags, f"--{name}=gs://bucket/x/"]) == 0
        assert os.fspath(seen[-1][name]) == "gs://bucket/x"
    assert os.listdir(home) == []


def test_what_cannot_lie_in_a_bucket_is_refused_before_the_verb_starts(home, fake, capfd):
    fake(lambda **values: pytest.fail("the verb started"))
    sweep = f"--config={ROOT / 'configs/sweeps/loss.py'}"
    for flags, words in (
        (["train", FOLDER, "--workdir=s3://b/x"], "--workdir=s3://b/x: checkpoints and shards"),
        (["eval", "--workdir=s3://b/x"], "not in s3://; choose a folder there"),
        (["prepare", FOLDER, "--config.data.shards=s3://b/x"], "config.data.shards=s3://b/x"),
        (["sweep", sweep, "--workdir=gs://b/x"], "must be a folder on this machine's disks"),
        (["prepare", "--config=gs://b/x.py:small"], "only the config.json of a run is read"),
    ):
        assert words in refused(capfd, *flags)


def test_a_config_that_a_run_recorded_in_a_bucket(home, fake, capfd, bucket):
    config = load(str(ROOT / "configs" / "folder.py"))
    config.seed = 7
    storage.write_bytes("gs://bucket/run/config.json", to_json(config).encode())
    seen = []
    fake(lambda **values: seen.append(values) or {})
    assert main.main(["eval", "--workdir=gs://bucket/run"]) == 0
    assert main.main(["train", "--config=gs://bucket/run/config.json", "--workdir=x"]) == 0
    assert [values["config"].seed for values in seen] == [7, 7]
    capfd.readouterr()
    missing = "gs://bucket/missing/config.json does not exist; give --config"
    assert missing in refused(capfd, "eval", "--workdir=gs://bucket/missing")


def test_a_bucket_that_refuses_is_one_line(home, capfd, bucket):
    bucket.fault = lambda method, url: 403
    assert main.main(["eval", "--workdir=gs://bucket/run"]) == 1
    captured = capfd.readouterr()
    assert captured.err.startswith("error: gs://bucket/run/config.json: no right to do that")
    assert captured.out == "" and captured.err.count("\n") == 1


def test_a_config_that_a_run_recorded_is_checked_too(home, fake, capfd):
    config = load(str(ROOT / "configs" / "folder.py"))
    config.data.root = "https://host/x"
    (home / "run").mkdir()
    (home / "run/config.json").write_text(to_json(config))
    assert "config.data.root=https://host/x is neither" in refused(capfd, "eval", "--workdir=run")


def test_an_output_that_cannot_be_written_is_refused_before_the_verb_starts(home, fake, capfd):
    fake(lambda **values: pytest.fail("the verb started"))
    (home / "file").write_text("x")
    for flags in (
        ["train", FOLDER, "--workdir=file/run"],
        ["bench", FOLDER, "--workdir=file"],
        ["port", "--source=x", "--destination=file/x"],
    ):
        assert "file" in refused(capfd, *flags)


def test_errors_of_the_machine_are_one_line(fake, capfd):
    def run(**values):
        raise OSError(24, "Too many open files")

    fake(run)
    assert main.main(["parity", "--golden=g", "--json"]) == 1
    captured = capfd.readouterr()
    assert captured.err.startswith("error: Too many open files; raise the limit")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_names_and_captions_print_where_the_locale_is_ascii(run_cli, tmp_path, arguments):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "\u732b.mp4", np.zeros((3, 32, 32, 3), np.uint8), rate=1)
    (videos / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")  # not UTF-8, and not in the table
    rows = "video_id,caption,split\n\u732b,a cat \U0001f63a,train\n\u72ac,a dog,train\n"
    (tmp_path / "captions.csv").write_text(rows, encoding="utf-8")
    root = f"--config.data.root={tmp_path}"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = run_cli("doctor", FOLDER, root, *arguments, **locale)
    assert done.status == 1 and "Traceback" not in done.stderr
    if arguments:
        assert [bad["video_id"] for bad in json.loads(done.stdout)["bad"]] == ["\u72ac"]
    else:
        assert "1 clips are missing or broken:\n  '\\u72ac': no such file" in done.stdout


def test_a_current_folder_that_was_removed(home, capfd, monkeypatch):
    (home / "gone").mkdir()
    monkeypatch.chdir(home / "gone")
    (home / "gone").rmdir()
    try:
        assert "the current folder has been removed" in refused(capfd, "doctor", FOLDER)
    finally:
        os.chdir(home)


QUICK = """
import dataclasses, sys
from hvp_jax.cli import main as cli
cli.check = lambda arguments: (dataclasses.make_dataclass("Result", ["n"]), {"n": 1})
raise SystemExit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", ["", "--json"])
@pytest.mark.parametrize(("target", "reason"), [("/dev/full", "No space left"), ("&-", "closed")])
def test_a_result_that_cannot_be_printed(arguments, target, reason):
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(QUICK)} {arguments} >{target}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    if target == "&-" and not arguments:  # Python prints to nothing, as other programs do
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: cannot write the result to stdout: ")
        assert reason in done.stderr
