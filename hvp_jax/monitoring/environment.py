"""environment.json: versions, devices, git revision."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets"),
    *("ml_collections", "numpy", "av", "pillow", "ftfy", "instant-clip-tokenizer", "tensorboardX"),
)


def environment(devices: Iterable[Any]) -> dict[str, Any]:
    """Package versions, `devices` such as `jax.devices()`, and the git revision; no paths.

    `git` is None outside a checkout, otherwise its `revision` and whether tracked files `changed`.
    """
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "devices": [{"name": str(d), "kind": d.device_kind} for d in devices],
        "git": _git(Path(__file__).resolve().parents[2]),
    }


def _git(root: Path) -> dict[str, Any] | None:
    def run(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if run("rev-parse", "--show-prefix"):
            return None  # our folder is inside a checkout of something else
        changed = bool(run("status", "--porcelain", "--untracked-files=no"))
        return {"revision": run("rev-parse", "--verify", "HEAD"), "changed": changed}
    except (OSError, subprocess.CalledProcessError):
        return None
