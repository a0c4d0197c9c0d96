"""Finds what is missing, broken or unusual among the clips of a data set, before training."""

import collections
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from data.annotations import common
from data.checks.published_counts import Count, compare
from data.records import Annotations, Clip
from data.tokenizer import encode
from data.video.inspection import FileJob, FileReport, SegmentReport, inspect_file
from data.worker_pool import MEMORY, SECONDS, run_isolated
from data.worker_process import Failed

SHORT, LONG = 1, 600  # seconds of a clip
UNUSUAL = {"short": f"are shorter than {SHORT} s", "long": f"are longer than {LONG} s"}
UNUSUAL["black"] = "are black in all frames that training takes"

Warnings = list[dict[str, Any]]


class InspectedClip(NamedTuple):
    """A clip and what the inspection found."""

    clip: Clip
    segment: SegmentReport
    missing: bool
    content: tuple[int, str] | None  # size of the file in bytes and its digest


def inspect_clips(
    clips: Sequence[Clip],
    num_frames: int,
    *,
    processes: int | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    progress: bool = True,
    work: Callable[[FileJob], FileReport] = inspect_file,
) -> list[InspectedClip]:
    """Inspects every clip, in order; a file is decoded once, to its end or where it is used.

    At most `num_frames` frames of a clip are taken, as in training. A file that crashes the
    decoder, hangs it for `seconds`, or needs more than `memory` bytes affects no other.
    """
    segments: dict[str, dict[tuple[float | None, float | None], None]] = {}
    for clip in clips:
        if clip.path:
            segments.setdefault(clip.path, {})[clip.start, clip.end] = None
    jobs = [FileJob(path, tuple(parts), num_frames) for path, parts in segments.items()]
    processes = min(processes or len(os.sched_getaffinity(0)), len(jobs))
    results = run_isolated(work, jobs, processes=processes, seconds=seconds, memory=memory)
    bar = tqdm(results, "doctor", len(jobs), leave=False, unit="file", disable=not progress)
    findings: dict[tuple, tuple] = {}
    for number, result in bar:
        job = jobs[number]
        if isinstance(result, Failed):
            result = FileReport((SegmentReport(result.reason),) * len(job.segments))
        for ends, segment in zip(job.segments, result.segments, strict=True):
            findings[(job.path, *ends)] = segment, result.missing, result.content
    no_file = SegmentReport("no such file"), True, None
    return [
        InspectedClip(clip, *findings.get((clip.path, clip.start, clip.end), no_file))
        for clip in clips
    ]


def report(
    dataset: str,
    annotations: Annotations,
    inspected: Sequence[InspectedClip],
    words: int,
    *,
    excluded: frozenset[str] = frozenset(),
    progress: bool = True,
) -> dict[str, Any]:
    """All findings: `splits`, `bad`, `warnings`, and `ok`: whether all clips except the
    `excluded` ones exist and are sound."""
    by_split: dict[str, list[InspectedClip]] = collections.defaultdict(list)
    for item in inspected:
        by_split[item.clip.split].append(item)
    names = [s for s in ("train", "val", "test") if by_split[s] or s in annotations.uncaptioned]
    tokens = _count_tokens((c for clip in annotations.clips for c in clip.captions), progress)
    splits: dict[str, dict[str, Any]] = {}
    warnings: Warnings = []
    for split in names:
        uncaptioned = annotations.uncaptioned.get(split, [])
        splits[split], more = _check_split(split, by_split[split], uncaptioned, excluded)
        captions, caption_warnings = _check_captions(split, by_split[split], tokens, words)
        splits[split] |= captions
        warnings += more + caption_warnings
    warnings += _check_counts(dataset, splits)
    duplicates = _find_duplicates(
        [x for x in inspected if not x.segment.fault and not common.is_among(x.clip, excluded)]
    )
    warnings += duplicates
    for split in splits:
        splits[split]["duplicates"] = sum(w["split"] == split for w in duplicates)
    if annotations.unlisted:
        reason = "have captions but are in no split's list: skipped"
        warnings.append(_warning("unlisted", None, reason, annotations.unlisted))
    bad = [
        {
            "video_id": clip.clip_id,
            "path": clip.path,
            "split": clip.split,
            "reason": segment.fault,
            "excluded": common.is_among(clip, excluded),
        }
        for clip, segment, _, _ in inspected
        if segment.fault
    ]
    return {
        "dataset": dataset,
        "splits": splits,
        "unlisted": len(annotations.unlisted),
        "bad": bad,
        "warnings": warnings,
        "ok": all(entry["excluded"] for entry in bad),
    }


def _warning(kind: str, split: str | None, reason: str, ids: Iterable[str]) -> dict[str, Any]:
    return {"kind": kind, "split": split, "reason": reason, "video_ids": list(ids)}


def _check_split(
    split: str,
    inspected: Sequence[InspectedClip],
    uncaptioned: Sequence[str],
    excluded: frozenset[str],
) -> tuple[dict[str, Any], Warnings]:
    """The counts of one split, and warnings about clips that are unusual but not broken."""
    sound = [x for x in inspected if not x.segment.fault]
    unusual = {
        "damaged": [x for x in sound if x.segment.damage],
        "gap": [x for x in sound if x.segment.gap],
        "short": [x for x in sound if x.segment.seconds < SHORT],
        "long": [x for x in sound if x.segment.seconds > LONG],
        "black": [x for x in sound if x.segment.black and x.segment.black == x.segment.frames],
    }
    warnings = [
        _warning(kind, split, getattr(x.segment, field), [x.clip.clip_id])
        for kind, field in (("damaged", "damage"), ("gap", "gap"))
        for x in unusual[kind]
    ]
    warnings += [
        _warning(kind, split, reason, [x.clip.clip_id for x in unusual[kind]])
        for kind, reason in UNUSUAL.items()
        if unusual[kind]
    ]
    if uncaptioned:
        reason = "are in the split's list but have no captions: skipped"
        warnings.append(_warning("uncaptioned", split, reason, uncaptioned))
    counts = {
        "videos": len(inspected),
        "captions": sum(len(x.clip.captions) for x in inspected),
        "expected": None,
        "uncaptioned": len(uncaptioned),
        "missing": sum(x.missing for x in inspected),
        "broken": sum(bool(x.segment.fault) and not x.missing for x in inspected),
        "excluded": sum(common.is_among(x.clip, excluded) for x in inspected),
        **{kind: len(clips) for kind, clips in unusual.items()},
        "black_frames": sum(x.segment.black for x in sound),
    }
    return counts, warnings


def _count_tokens(captions: Iterable[str], progress: bool) -> dict[str, int]:
    distinct = dict.fromkeys(captions)
    bar = tqdm(distinct, "captions", leave=False, unit="caption", disable=not progress)
    return {caption: len(encode(caption)) for caption in bar}


def _check_captions(
    split: str, inspected: Sequence[InspectedClip], tokens: dict[str, int], words: int
) -> tuple[dict[str, Any], Warnings]:
    """Counts captions that are empty, shared by clips, or longer than `words` tokens, start and
    end included; `tokens`: caption -> how many tokens it has without these two."""
    clips = [item.clip for item in inspected]
    empty = [clip.clip_id for clip in clips if not all(tokens[c] for c in clip.captions)]
    ids_of_caption: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for clip in clips:
        for caption in clip.captions:
            ids_of_caption[caption.strip()][clip.clip_id] = None
    shared = [ids for ids in ids_of_caption.values() if len(ids) > 1]
    excess = [tokens[c] + 2 - words for clip in clips for c in clip.captions]
    cut = [n for n in excess if n > 0]
    counts = {
        "empty_captions": sum(not tokens[c] for clip in clips for c in clip.captions),
        "repeated_captions": sum(len(ids) - 1 for ids in shared),
        "cut_captions": {"count": len(cut), "most": max(cut, default=0), "tokens": sum(cut)},
    }
    reason = "have an empty caption"
    warnings = [_warning("empty_captions", split, reason, empty)] if empty else []
    if shared and split != "train":
        reason = "share a caption with another clip: no query can distinguish them"
        sharing = dict.fromkeys(clip_id for ids in shared for clip_id in ids)
        warnings.append(_warning("repeated_captions", split, reason, sharing))
    if cut:
        reason = (
            f"{len(cut)} of {len(excess)} captions are cut by data.max_words={words}, "
            f"by {sum(cut) / len(cut):.1f} tokens on average and {max(cut)} at most"
        )
        warnings.append(_warning("cut_captions", split, reason, []))
    return counts, warnings


def _check_counts(dataset: str, splits: dict[str, dict[str, Any]]) -> Warnings:
    """Fills in `expected`; warns of splits with other counts than the published data set."""
    actual = {
        name: Count(s["videos"], s["captions"], s["videos"] + s["uncaptioned"])
        for name, s in splits.items()
    }
    warnings = []
    for split, (published, matches) in compare(dataset, actual).items():
        known = {key: value for key, value in published._asdict().items() if value is not None}
        if split in splits:
            splits[split]["expected"] = known
        if not matches:
            counts = ", ".join(f"{value} {key}" for key, value in known.items())
            reason = f"the published data set has {counts} in this split"
            warnings.append(_warning("counts", split, reason, []))
    return warnings


def _find_duplicates(inspected: Sequence[InspectedClip]) -> Warnings:
    """Warns of test clips that are also in train: the same file, or the same frames taken."""
    train_ids: dict[Any, str] = {}
    for item in inspected:
        if item.clip.split == "train":
            for digest in _digests(item):
                train_ids.setdefault(digest, item.clip.clip_id)
    warnings = []
    for item in inspected:
        same = [digest for digest in _digests(item) if digest in train_ids]
        if item.clip.split == "test" and same:
            what = "file" if isinstance(same[0], tuple) else "frames"
            reason = f"the same {what} as {train_ids[same[0]]!r} of train"
            warnings.append(_warning("duplicate", "test", reason, [item.clip.clip_id]))
    return warnings


def _digests(item: InspectedClip) -> list[Any]:
    """A tuple for the file, start and end, and a `str` for the frames, where not all black."""
    file = (*item.content, item.clip.start, item.clip.end) if item.content else None
    return [digest for digest in (file, item.segment.digest) if digest]
