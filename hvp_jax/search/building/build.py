"""Makes an index of a folder of videos, or brings it up to date.

What is new or has changed is encoded in chunks that are written as they are done; at the end they
become part of the table in one step, and then the clips of videos that are gone are deleted.
"""

import dataclasses
from datetime import timedelta

from data.storage.path import Path, PathLike, absolute
from hvp_jax.retrieval.retriever import Retriever
from hvp_jax.search import manifest, recall, vector_index
from hvp_jax.search import table as clips
from hvp_jax.search.building import encoding, pending
from hvp_jax.search.building.collection import Collection, read_collection
from hvp_jax.search.building.pending import Key
from hvp_jax.search.manifest import Manifest
from hvp_jax.training.exclusive import exclusive

SECONDS, TOKENS = 60, "int16"
SHOWN = 10  # skipped videos that the text names
SHARDS = "shards"  # the folder of the shards' locks
DELETED = 10_000  # rows that one command deletes
KEPT_FOR = timedelta(days=1)  # an older version of the table, which a search may still read
# The recall is measured again when the number of clips has changed by more than this share.
CHANGE = 0.1


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """What `build` has done; the numbers are those of videos, but `clips` of the whole table."""

    index: str
    videos: int  # in the folder, without those that are skipped
    clips: int
    added: int
    changed: int
    removed: int
    missing: int  # that are not encoded yet: by the other shards
    skipped: dict[str, str]  # videos that cannot be read -> the reason
    shard: str  # "" if all videos are encoded here and committed

    @property
    def ok(self) -> bool:
        """Whether something is indexed, and after --join all of it."""
        return bool(self.shard) or (self.clips > 0 and not self.missing)

    @property
    def text(self) -> str:
        lines = [f"skipped {name}: {why}" for name, why in list(self.skipped.items())[:SHOWN]]
        if len(self.skipped) > SHOWN:
            lines.append(f"and {len(self.skipped) - SHOWN} more; --json names all")
        if self.shard:
            lines.append(
                f"{self.index}: encoded {self.added + self.changed} videos of shard {self.shard}; "
                "when all shards are done, `index --join` makes them part of the index"
            )
            return "\n".join(lines)
        lines.append(
            f"{self.index}: {self.clips:,} clips of {self.videos:,} videos; {self.added:,} added, "
            f"{self.changed:,} changed, {self.removed:,} removed, {len(self.skipped):,} skipped"
        )
        if self.missing:
            lines.append(
                f"{self.missing:,} videos are not encoded yet: run their shard again, or `index` "
                "without --join"
            )
        return "\n".join(lines)


def build(
    retriever: Retriever,
    videos: PathLike,
    uri: PathLike,
    *,
    segment_seconds: int = SECONDS,
    tokens: str = TOKENS,
    shard: tuple[int, int] | None = None,
    join: bool = False,
) -> BuildResult:
    """Indexes the videos of a folder at `uri`; `shard` (i, n) encodes every nth of them only.

    `join` commits what the shards have encoded, and encodes nothing. Raises UsageError if the
    index was made in another way, or if another process is writing it.
    """
    uri = str(absolute(uri))
    collection = read_collection(videos)
    wanted = Manifest(
        fingerprint=retriever.fingerprint,
        weights=retriever.weights,
        root=collection.root,
        segment_seconds=segment_seconds,
        tokens=tokens,
    )
    lock = Path(uri)
    if shard:
        lock = lock / SHARDS / f"{shard[0]} of {shard[1]}"
    with clips.writing(uri), exclusive(lock, "wait until it ends"):
        _create(retriever, uri, wanted)
        return _update(retriever, collection, uri, wanted, shard=shard, join=join)


def _create(retriever: Retriever, uri: str, wanted: Manifest) -> None:
    """Makes the index if there is none; else compares how it was made."""
    found = manifest.read(uri)
    if found is None:
        manifest.write(uri, wanted)
    else:
        manifest.require_same(uri, found, wanted)
    if clips.find_table(uri) is None:
        clips.create(uri, clips.schema(retriever, wanted.tokens))


def _update(
    retriever: Retriever,
    collection: Collection,
    uri: str,
    wanted: Manifest,
    *,
    shard: tuple[int, int] | None,
    join: bool,
) -> BuildResult:
    before = _videos_of(uri)
    waiting = pending.read(uri, before)
    have = {*before, *(key for part in waiting for key in part.videos)}
    mine = collection.videos[shard[0] :: shard[1]] if shard else collection.videos
    todo = [video for video in mine if (video.name, video.version) not in have]
    skipped = dict(collection.skipped)
    columns = clips.open_dataset(uri).schema
    encoded: list[Key] = []
    if not join:
        for rows, features, videos in encoding.encode(
            retriever, todo, wanted.segment_seconds, skipped=skipped, waits=collection.waits
        ):
            keys = [(video.name, video.version) for video in videos]
            pending.write(uri, clips.to_arrow(rows, features, columns), keys)
            encoded += keys
    versions = {video.name: video.version for video in collection.videos}
    if shard:
        pending.write_skipped(uri, shard, versions, skipped)
    else:
        of_shards = pending.read_skipped(uri, versions) if join else {}
        skipped = of_shards | skipped
    current = {key for key in versions.items() if key[0] not in skipped}
    if not shard:
        pending.commit(uri, pending.read(uri, before))
        _delete_stale(uri, current)
        _finish(retriever, uri, wanted)
    after = set(encoded) | before if shard else _videos_of(uri)
    missing = len(current - after) if join else 0
    if not shard and not missing:
        pending.forget_skipped(uri)
    names = {name for name, _ in before}
    fresh = {name for name, version in after - before}
    return BuildResult(
        index=uri,
        videos=len(current),
        clips=clips.open_dataset(uri).count_rows(),
        added=len(fresh - names),
        changed=len(fresh & names),
        removed=0 if shard else len(names - {name for name, _ in after}),
        missing=missing,
        skipped=skipped,
        shard=f"{shard[0]}/{shard[1]}" if shard else "",
    )


def _videos_of(uri: str) -> set[Key]:
    """The videos whose clips are in the table."""
    rows = clips.open_dataset(uri).to_table(columns=["path", "version"])
    return set(zip(rows["path"].to_pylist(), rows["version"].to_pylist(), strict=True))


def _delete_stale(uri: str, current: set[Key]) -> None:
    """Deletes the clips of videos that are gone or have another version."""
    dataset = clips.open_dataset(uri)
    rows = dataset.to_table(columns=["path", "version"], with_row_id=True)
    keys = zip(rows["path"].to_pylist(), rows["version"].to_pylist(), strict=True)
    ids = rows["_rowid"].to_pylist()
    stale = [i for i, key in zip(ids, keys, strict=True) if key not in current]
    for first in range(0, len(stale), DELETED):
        dataset.delete(f"_rowid IN ({', '.join(map(str, stale[first : first + DELETED]))})")


def _finish(retriever: Retriever, uri: str, wanted: Manifest) -> None:
    """What follows a commit: small fragments joined, the vectors indexed, the recall measured."""
    dataset = clips.open_dataset(uri)
    dataset.optimize.compact_files(target_rows_per_fragment=encoding.CHUNK)
    dataset.cleanup_old_versions(KEPT_FOR)
    vector_index.ensure(uri)
    table = clips.find_table(uri)
    assert table is not None  # it was opened above
    found = manifest.require(uri)
    rows, measured = table.count_rows(), (found.recall or {}).get("rows", 0)
    if "tokens" in table.schema.names and "vector" in table.schema.names:
        if rows and abs(rows - measured) > CHANGE * measured:
            measured_now = recall.measure(retriever, table)
            manifest.write(uri, dataclasses.replace(found, recall=measured_now))
