"""The record of versions, devices and git revision."""

import json
import os
import subprocess

import jax
import numpy as np

from hvp_jax.monitoring import environment


def test_environment_has_versions_and_devices_but_no_paths():
    record = environment.environment(jax.devices()[:1])
    assert record["devices"] == [{"name": str(jax.devices()[0]), "kind": "cpu"}]
    assert record["packages"]["numpy"] == np.__version__
    assert set(record) == {"python", "platform", "packages", "devices", "git"}
    assert '"/' not in json.dumps(record) and os.getcwd() not in json.dumps(record)


def test_git_revision(tmp_path):
    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(
            ["git", "-C", tmp_path, *author, *arguments], check=True, capture_output=True
        )

    assert environment._git(tmp_path) is None
    git("init")
    assert environment._git(tmp_path) is None  # no revision yet
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    revision = environment._git(tmp_path)
    assert len(revision["revision"]) == 40 and revision["changed"] is False
    (tmp_path / "sub" / "file").write_text("2")
    assert environment._git(tmp_path) == revision | {"changed": True}
    assert environment._git(tmp_path / "sub") is None  # inside a checkout of something else
