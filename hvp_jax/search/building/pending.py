"""pending/: fragments of the table that are written and not committed yet.

A file there names a fragment and the videos whose clips are in it. What a process has encoded is
kept when it is killed, and the fragments of several processes become part of the table at once.
"""

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments

from data.storage import files as storage
from data.storage.path import PathLike
from hvp_jax.search import table

FOLDER = "pending"
PREFIX, SKIPPED = "clips-", "skipped-{}-of-{}.json"

Key = tuple[str, str]  # name and version of a video


class Pending(NamedTuple):
    """The fragments of a file of pending/, and the videos whose clips are in them."""

    path: str
    fragments: list[FragmentMetadata]
    videos: list[Key]


def write(uri: PathLike, rows: pa.Table, videos: Iterable[Key]) -> None:
    """Writes all clips of some videos as a fragment of the table, uncommitted."""
    fragments = write_fragments(
        rows,
        table.dataset_uri(uri),
        schema=rows.schema,
        storage_options=table.storage_options(uri),
    )
    content = {"fragments": [x.to_json() for x in fragments], "videos": list(videos)}
    storage.make_folder(os.path.join(uri, FOLDER))
    path = os.path.join(uri, FOLDER, f"{PREFIX}{secrets.token_hex(8)}.json")
    storage.write_bytes(path, json.dumps(content).encode())


def read(uri: PathLike, known: Iterable[Key]) -> list[Pending]:
    """What is pending, without those that have a video of the table, or of another one, in them.

    Those are left from a run that was killed after its commit, or of two that had the same video.
    They are removed.
    """
    folder = os.path.join(uri, FOLDER)
    seen, kept = set(known), []
    for name in _names(folder):
        if not name.startswith(PREFIX):
            continue
        path = os.path.join(folder, name)
        try:
            content = json.loads(storage.read_bytes(path))
        except FileNotFoundError:  # another process has committed it
            continue
        videos = [(video, version) for video, version in content["videos"]]
        if seen.isdisjoint(videos):
            seen.update(videos)
            fragments = [FragmentMetadata.from_json(json.dumps(x)) for x in content["fragments"]]
            kept.append(Pending(path, fragments, videos))
        else:
            storage.remove(path)
    return kept


def write_skipped(
    uri: PathLike, shard: tuple[int, int], versions: dict[str, str], skipped: dict[str, str]
) -> None:
    """Notes the videos that a shard has skipped: name -> reason; `versions` are those of all."""
    content = {name: [versions.get(name, ""), reason] for name, reason in skipped.items()}
    path = os.path.join(uri, FOLDER, SKIPPED.format(*shard))
    storage.make_folder(os.path.join(uri, FOLDER))
    storage.write_bytes(path, json.dumps(content).encode())


def read_skipped(uri: PathLike, versions: dict[str, str]) -> dict[str, str]:
    """The videos that the shards have skipped and that have not changed: name -> reason."""
    folder, skipped = os.path.join(uri, FOLDER), {}
    for name in _names(folder):
        if name.startswith(SKIPPED[:8]):
            content = json.loads(storage.read_bytes(os.path.join(folder, name)))
            for video, (version, reason) in content.items():
                if versions.get(video, "") == version:
                    skipped[video] = reason
    return skipped


def forget_skipped(uri: PathLike) -> None:
    """Removes what the shards have noted."""
    folder = os.path.join(uri, FOLDER)
    for name in _names(folder):
        if name.startswith(SKIPPED[:8]):
            storage.remove(os.path.join(folder, name))


def _names(folder: str) -> list[str]:
    try:
        return storage.names(folder)
    except FileNotFoundError:
        return []


def commit(uri: PathLike, pending: Sequence[Pending]) -> None:
    """Makes the fragments part of the table, all at once."""
    if not pending:
        return
    dataset = table.open_dataset(uri)
    fragments = [fragment for part in pending for fragment in part.fragments]
    lance.LanceDataset.commit(
        dataset,
        lance.LanceOperation.Append(fragments),
        read_version=dataset.version,
    )
    for part in pending:
        storage.remove(part.path)
