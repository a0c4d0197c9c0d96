"""DIR/manifest.json: the settings and seeds of the sweep in DIR.

Every setting and seed is a run like any other, in the workdir DIR/runs/SETTING/seed-N.
"""

import dataclasses
import json
from typing import Any

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.monitoring import json_files

MANIFEST_FILE = "manifest.json"
ERROR_FILE = "error.txt"  # in the folder of a run that failed: the last line of its error


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A sweep: its name, its base setting, all settings in order, and the seeds.

    `settings` has (name, {key: value}) of every setting, the base among them. A key is written
    as in "model.taps", and a value is a number, text, None, or a list of them.
    """

    sweep: str
    base: str
    settings: tuple[tuple[str, dict[str, Any]], ...]
    seeds: tuple[int, ...]

    def names(self) -> list[str]:
        """The names of the settings, in order."""
        return [name for name, _ in self.settings]


def run_folder(folder: Path, setting: str, seed: int) -> Path:
    """The workdir of one run of the sweep in `folder`."""
    return folder / "runs" / setting / f"seed-{seed}"


def write(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json, atomically. Raises UsageError if it cannot be written."""
    json_files.make_workdir(folder)
    settings = [{"name": name, "overrides": changes} for name, changes in manifest.settings]
    fields: dict[str, Any] = {"sweep": manifest.sweep, "base": manifest.base}
    fields |= {"settings": settings, "seeds": manifest.seeds}
    json_files.write_json(folder / MANIFEST_FILE, fields)


def read(folder: Path) -> Manifest:
    """The manifest of the sweep in `folder`.

    Raises UsageError if `folder` holds no sweep, and DataError if the file is damaged.
    """
    path = folder / MANIFEST_FILE
    try:
        return _parse(json.loads(storage.read_text(path)))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give the folder of a sweep") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not the manifest of a sweep: {error}") from None


def differences(before: Manifest, now: Manifest) -> list[str]:
    """What makes `now` another sweep than `before`; settings and seeds may have been added."""
    found = []
    for field in ("sweep", "base"):
        old, new = getattr(before, field), getattr(now, field)
        if old != new:
            found.append(
                f"its {'name' if field == 'sweep' else 'base setting'} is {old}, not {new}"
            )
    settings = dict(now.settings)
    for name, changes in before.settings:
        if name not in settings:
            found.append(f"it has a setting {name} too")
        elif json_files.to_json_types(settings[name]) != json_files.to_json_types(changes):
            found.append(f"its setting {name} is {changes}, not {settings[name]}")
    if missing := sorted(set(before.seeds) - set(now.seeds)):
        found.append(f"it has the seeds {', '.join(map(str, missing))} too")
    return found


def _parse(fields: Any) -> Manifest:
    """Raises ValueError if `fields` are not those that `write` writes."""
    try:
        sweep, base, seeds = fields["sweep"], fields["base"], tuple(fields["seeds"])
        settings = tuple((row["name"], dict(row["overrides"])) for row in fields["settings"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    names = [name for name, _ in settings]
    if not all(isinstance(name, str) for name in (sweep, base, *names)):
        raise ValueError("the name of a setting is not text")
    if not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError("its seeds are no whole numbers")
    if base not in names or len(set(names)) < len(names):
        raise ValueError("its settings do not have different names, with the base among them")
    return Manifest(sweep, base, settings, seeds)
