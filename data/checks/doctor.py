"""Clips -> what is missing, broken or odd among them, before training finds out."""

import collections
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from data.annotations import common
from data.checks.published_counts import Count, expected
from data.records import Annotations, Clip
from data.tokenizer import encode
from data.video.inspection import FileJob, FileReport, SegmentReport, inspect_file
from data.worker_pool import MEMORY, SECONDS, Failed, run_isolated

SHORT, LONG = 1, 600  # seconds of a clip


class InspectedClip(NamedTuple):
    """A clip and what was found of it."""

    clip: Clip
    found: SegmentReport
    missing: bool
    content: tuple[int, str] | None  # bytes of the file and their digest


def inspect_clips(
    clips: Sequence[Clip],
    frames: int,
    processes: int | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    progress: bool = True,
    work=inspect_file,
) -> list[InspectedClip]:
    """Every clip, in order, with what its file is worth; each file is decoded once to its end.

    `frames` of a clip are taken at most, as in training. Files that crash or hang the
    decoder (for `seconds`), or ask for more than `memory` bytes, cost nobody else anything.
    `progress` shows a bar on stderr.
    """
    stretches: dict[str, dict] = {}
    for clip in clips:
        if clip.path:
            stretches.setdefault(clip.path, {})[clip.start, clip.end] = None
    jobs = [FileJob(path, tuple(parts), frames) for path, parts in stretches.items()]
    processes = min(processes or len(os.sched_getaffinity(0)), len(jobs))
    results = run_isolated(work, jobs, processes, seconds, memory)
    bar = tqdm(results, "doctor", len(jobs), leave=False, unit="file", disable=not progress)
    found: dict[tuple, tuple] = {}
    for number, result in bar:
        job = jobs[number]
        if isinstance(result, Failed):
            result = FileReport((SegmentReport(result.reason),) * len(job.segments))
        for ends, stretch in zip(job.segments, result.segments, strict=True):
            found[(job.path, *ends)] = stretch, result.missing, result.content
    nothing = SegmentReport("no such file"), True, None
    return [
        InspectedClip(clip, *found.get((clip.path, clip.start, clip.end), nothing))
        for clip in clips
    ]


def report(
    dataset: str,
    told: Annotations,
    patients: Sequence[InspectedClip],
    words: int,
    excluded: frozenset[str] = frozenset(),
    progress: bool = True,
) -> dict[str, Any]:
    """All findings: `splits`, `bad`, `warnings` and `ok`, which is whether all clips but the
    `excluded` are there and sound."""
    by_split: dict[str, list[InspectedClip]] = collections.defaultdict(list)
    for patient in patients:
        by_split[patient.clip.split].append(patient)
    names = dict.fromkeys(
        s for s in ("train", "val", "test") if by_split[s] or s in told.uncaptioned
    )
    tokens = _count_tokens((c for clip in told.clips for c in clip.captions), progress)
    splits, warnings = {}, []
    for split in names:
        uncaptioned = told.uncaptioned.get(split, [])
        splits[split], odd = _split(split, by_split[split], uncaptioned, tokens, words, excluded)
        warnings += odd
    warnings += _compare_counts(dataset, splits)
    sound = [p for p in patients if not p.found.fault and not common.is_among(p.clip, excluded)]
    twice = _duplicates(sound)
    warnings += twice
    for split in splits:
        splits[split]["duplicates"] = sum(w["split"] == split for w in twice)
    if told.unlisted:
        said = "have captions and are in no list of a split: left out"
        warnings.append(_warning("unlisted", None, said, told.unlisted))
    bad = [
        {
            "video_id": clip.clip_id,
            "path": clip.path,
            "split": clip.split,
            "reason": found.fault,
            "excluded": common.is_among(clip, excluded),
        }
        for clip, found, _, _ in patients
        if found.fault
    ]
    return {
        "dataset": dataset,
        "splits": splits,
        "unlisted": len(told.unlisted),
        "bad": bad,
        "warnings": warnings,
        "ok": all(entry["excluded"] for entry in bad),
    }


def _warning(kind: str, split: str | None, reason: str, ids: Iterable[str]) -> dict[str, Any]:
    return {"kind": kind, "split": split, "reason": reason, "video_ids": list(ids)}


def _split(split, patients, uncaptioned, tokens, words, excluded) -> tuple[dict, list[dict]]:
    """The figures of one split, and what is odd in it without being broken."""
    sound = [p for p in patients if not p.found.fault]
    odd = {
        "damaged": [p for p in sound if p.found.damage],
        "short": [p for p in sound if p.found.seconds < SHORT],
        "long": [p for p in sound if p.found.seconds > LONG],
        "black": [p for p in sound if p.found.black and p.found.black == p.found.frames],
    }
    says = {
        "short": f"are shorter than {SHORT} s",
        "long": f"are longer than {LONG} s",
        "black": "are black in all frames that are taken",
    }
    warnings = [
        _warning("damaged", split, p.found.damage, [p.clip.clip_id]) for p in odd["damaged"]
    ]
    warnings += [
        _warning(kind, split, text, [p.clip.clip_id for p in odd[kind]])
        for kind, text in says.items()
        if odd[kind]
    ]
    if uncaptioned:
        said = "are in its list and have no captions: left out"
        warnings.append(_warning("uncaptioned", split, said, uncaptioned))
    captions, more = _captions(split, [p.clip for p in patients], tokens, words)
    figures = {
        "videos": len(patients),
        "captions": sum(len(p.clip.captions) for p in patients),
        "expected": None,
        "uncaptioned": len(uncaptioned),
        "missing": sum(p.missing for p in patients),
        "broken": sum(bool(p.found.fault) and not p.missing for p in patients),
        "excluded": sum(common.is_among(p.clip, excluded) for p in patients),
        **{kind: len(some) for kind, some in odd.items()},
        "black_frames": sum(p.found.black for p in sound),
        **captions,
    }
    return figures, warnings + more


def _count_tokens(captions: Iterable[str], progress: bool) -> dict[str, int]:
    distinct = dict.fromkeys(captions)
    bar = tqdm(distinct, "captions", leave=False, unit="caption", disable=not progress)
    return {caption: len(encode(caption)) for caption in bar}


def _captions(split: str, clips: Sequence[Clip], tokens, words) -> tuple[dict, list[dict]]:
    """Captions that are empty, of several clips, or longer than `words`, start and end included."""
    empty = [clip.clip_id for clip in clips if not all(tokens[c] for c in clip.captions)]
    owners = collections.defaultdict(dict)  # caption -> ids of its clips
    for clip in clips:
        for caption in clip.captions:
            owners[caption.strip()][clip.clip_id] = None
    shared = [ids for ids in owners.values() if len(ids) > 1]
    beyond = [tokens[c] + 2 - words for clip in clips for c in clip.captions]
    cut = [n for n in beyond if n > 0]
    figures = {
        "empty_captions": sum(not tokens[c] for clip in clips for c in clip.captions),
        "repeated_captions": sum(len(ids) - 1 for ids in shared),
        "cut_captions": {"count": len(cut), "most": max(cut, default=0), "tokens": sum(cut)},
    }
    warnings = []
    if empty:
        warnings.append(_warning("empty_captions", split, "have an empty caption", empty))
    if shared and split != "train":
        said = "share a caption with another clip: no query can tell them apart"
        ids = dict.fromkeys(name for some in shared for name in some)
        warnings.append(_warning("repeated_captions", split, said, ids))
    if cut:
        said = (
            f"{len(cut)} of {len(beyond)} captions are cut by data.max_words={words}, "
            f"by {sum(cut) / len(cut):.1f} tokens on average and {max(cut)} at most"
        )
        warnings.append(_warning("cut_captions", split, said, []))
    return figures, warnings


def _compare_counts(dataset: str, splits: dict[str, dict]) -> list[dict]:
    """Fills in `expected`; tells the splits that hold something else."""
    found = {
        name: Count(of["videos"], of["captions"], of["videos"] + of["uncaptioned"])
        for name, of in splits.items()
    }
    warnings = []
    for split, (should, fits) in expected(dataset, found).items():
        known = {key: value for key, value in should._asdict().items() if value is not None}
        if split in splits:
            splits[split]["expected"] = known
        if not fits:
            told = ", ".join(f"{value} {key}" for key, value in known.items())
            said = f"the published data set has {told} here"
            warnings.append(_warning("counts", split, said, []))
    return warnings


def _duplicates(patients: Sequence[InspectedClip]) -> list[dict]:
    """Clips of test that are in train too, byte for byte or in every frame that is taken."""
    trained: dict[Any, str] = {}
    for patient in patients:
        if patient.clip.split == "train":
            for key in _contents(patient):
                trained.setdefault(key, patient.clip.clip_id)
    warnings = []
    for patient in patients:
        same = [key for key in _contents(patient) if key in trained]
        if patient.clip.split == "test" and same:
            what = "file" if isinstance(same[0], tuple) else "pictures"
            said = f"the same {what} as {trained[same[0]]!r} of train"
            warnings.append(_warning("duplicate", "test", said, [patient.clip.clip_id]))
    return warnings


def _contents(patient: InspectedClip) -> list[Any]:
    clip = patient.clip
    whole = (*patient.content, clip.start, clip.end) if patient.content else None
    return [key for key in (whole, patient.found.digest) if key]
