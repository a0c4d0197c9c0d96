"""What the content of shards depends on: stored with them, and compared with a run's clips.

Of the video files it contains the sizes, but no paths and no times: shards stay valid when
the data set is copied elsewhere, or its video files are deleted.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from data.records import Clip
from data.storage import listing

NO_FILE = -1  # the size of a missing file; such a clip is never written


def fingerprint(
    clips: Sequence[Clip], size: int, max_frames: int, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Shards are the same if their fingerprints are.

    Returns {"size", "frames", "clips": a digest of all clips, and for each split, lists in the
    order of its clips: "clip_ids", "bytes": sizes of the video files, "texts": digests of
    the captions}. A file that is gone counts with its size in the fingerprint `known`.
    """
    known_sizes = _file_sizes(known) if known else {}
    sizes = listing.sizes({clip.path for clip in clips})
    digest = hashlib.sha256()
    columns: dict[str, dict[str, list]] = {"clip_ids": {}, "bytes": {}, "texts": {}}
    for clip in clips:
        file_size = sizes.get(clip.path, known_sizes.get(clip.clip_id, NO_FILE))
        row = (clip.clip_id, file_size, _text_digest(clip))
        digest.update(json.dumps([clip.split, *row]).encode())
        for column, value in zip(columns.values(), row, strict=True):
            column.setdefault(clip.split, []).append(value)
    return {"size": size, "frames": max_frames, "clips": digest.hexdigest()} | columns


def changed_clips(prepared: dict[str, Any], split: str, clips: Sequence[Clip]) -> list[str]:
    """The clips of `split` that differ from the fingerprint `prepared`, each with the reason.

    Clips whose video file is gone, or that were never prepared, are not among them.
    """
    split_of = {i: part for part, ids in prepared["clip_ids"].items() for i in ids}
    text_of = dict(zip(prepared["clip_ids"][split], prepared["texts"][split], strict=True))
    file_sizes = _file_sizes(prepared)
    sizes = listing.sizes({clip.path for clip in clips if clip.split == split})
    changed = []
    for clip in clips:
        old_split = split_of.get(clip.clip_id)
        if clip.split != split or old_split is None:
            continue
        if old_split != split:
            changed.append(f"{clip.clip_id} (was in the split {old_split}, is in {split})")
        elif text_of[clip.clip_id] != _text_digest(clip):
            changed.append(f"{clip.clip_id} (other captions)")
        else:
            old = file_sizes[clip.clip_id]
            new = sizes.get(clip.path, old)
            if new != old:
                changed.append(f"{clip.clip_id} ({clip.path} had {old} bytes, has {new})")
    return changed


def _file_sizes(prepared: dict[str, Any]) -> dict[str, int]:
    """Sizes of the video files by clip id."""
    splits = ((prepared["clip_ids"][s], prepared["bytes"][s]) for s in prepared["clip_ids"])
    return {i: size for split in splits for i, size in zip(*split, strict=True)}


def _text_digest(clip: Clip) -> str:
    # 32 bits are enough to notice a change, and short, as there are many clips. The start and
    # end of a clip are in its id; its `end` may be unknown once the file is gone.
    return hashlib.sha256(json.dumps(clip.captions).encode()).hexdigest()[:8]
