"""What shards follow from: kept beside them, and compared with the clips of a run.

Of the video files the sizes are in it, but no paths and no times: shards stay good when
the data set is copied to another place, or its video files are deleted.
"""

import hashlib
import json
import os
from collections.abc import Sequence

from data.records import Clip

NO_FILE = -1  # the size of a file that is not there; nothing is ever made of it


def fingerprint(clips: Sequence[Clip], size: int, frames: int, known: dict | None = None) -> dict:
    """Other values mean other shards.

    Returns {"size", "frames", "clips": a digest of all, and for every split lists in the
    order of its clips: "clip_ids", "bytes": sizes of their files, "texts": digests of
    what is said of them}. A file that is gone counts as it did in the fingerprint `known`.
    """
    lengths = _lengths(known) if known else {}
    digest = hashlib.sha256()
    listed: dict[str, dict[str, list]] = {"clip_ids": {}, "bytes": {}, "texts": {}}
    for clip in clips:
        length = _length(clip, lengths.get(clip.clip_id, NO_FILE))
        facts = (clip.clip_id, length, _text_digest(clip))
        digest.update(json.dumps([clip.split, *facts]).encode())
        for name, fact in zip(listed, facts, strict=True):
            listed[name].setdefault(clip.split, []).append(fact)
    return {"size": size, "frames": frames, "clips": digest.hexdigest()} | listed


def changed_clips(prepared: dict, split: str, clips: Sequence[Clip]) -> list[str]:
    """Those of `split` that are not as in the fingerprint `prepared`, each with the reason.

    Clips whose video file is gone, or that were not prepared at all, are none of them.
    """
    split_of = {i: part for part, ids in prepared["clip_ids"].items() for i in ids}
    text_of = dict(zip(prepared["clip_ids"][split], prepared["texts"][split], strict=True))
    lengths = _lengths(prepared)
    found = []
    for clip in clips:
        before = split_of.get(clip.clip_id)
        if clip.split != split or before is None:
            continue
        if before != split:
            found.append(f"{clip.clip_id} (was of the split {before}, is of {split})")
        elif text_of[clip.clip_id] != _text_digest(clip):
            found.append(f"{clip.clip_id} (other captions)")
        else:
            was = lengths[clip.clip_id]
            now = _length(clip, was)
            if now != was:
                found.append(f"{clip.clip_id} ({clip.path} had {was} bytes, has {now})")
    return found


def _lengths(prepared: dict) -> dict[str, int]:
    parts = ((prepared["clip_ids"][s], prepared["bytes"][s]) for s in prepared["clip_ids"])
    return {i: length for part in parts for i, length in zip(*part, strict=True)}


def _length(clip: Clip, if_gone: int) -> int:
    try:
        return os.path.getsize(clip.path)
    except OSError:
        return if_gone


def _text_digest(clip: Clip) -> str:
    # 32 bits: enough to tell a changed clip, and short, as there are many clips. Where it starts
    # and ends is in its id; without its file, no reader can tell whether that is cut already.
    return hashlib.sha256(json.dumps(clip.captions).encode()).hexdigest()[:8]
