"""The verb `doctor`: finds missing, broken and suspicious clips in a data set."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from data import inputs
from data.checks import doctor, exclude
from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.monitoring import json_files

BAD_IDS = "bad_ids.txt"
SHOWN = 5  # the number of bad clips and ids that the text lists
COLUMNS = (
    *("videos", "captions", "uncaptioned", "missing", "broken", "excluded", "damaged", "gap"),
    *(
        "short",
        "long",
        "black",
        "duplicates",
        "empty_captions",
        "repeated_captions",
        "cut_captions",
    ),
)


@dataclasses.dataclass(frozen=True)
class DoctorResult:
    dataset: str
    splits: dict[str, dict[str, Any]]  # counts by split
    unlisted: int  # clips that have captions and are in no split
    bad: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    ok: bool  # every bad clip is excluded
    text: str = dataclasses.field(metadata={"json": None})


def run(config: ConfigDict, workdir: Path | None = None) -> DoctorResult:
    """Checks every clip and caption of a data set.

    With a `workdir`, writes doctor.json and the ids of all bad clips, for `data.exclude`.
    """
    data = config.data
    ids = exclude.read_ids(data.exclude)
    annotations = inputs.read_annotations(inputs.location_from_config(config))
    if ids:
        exclude.excluded_clips(annotations.clips, ids)  # logs how many there are
    inspected = doctor.inspect_clips(annotations.clips, data.max_frames)
    report = doctor.report(data.dataset, annotations, inspected, data.max_words, excluded=ids)
    text = table(report)
    if workdir:
        json_files.make_workdir(workdir)
        json_files.write_json(workdir / "doctor.json", report)
        bad = dict.fromkeys(entry["video_id"] for entry in report["bad"])
        try:
            exclude.write_ids(workdir / BAD_IDS, list(bad))
        except OSError as error:
            raise UsageError(f"cannot write {workdir / BAD_IDS}: {error.strerror}") from None
        if not report["ok"]:
            text += f"\nexclude them with --config.data.exclude={workdir / BAD_IDS}"
    elif not report["ok"]:
        text += f"\n--workdir=DIR writes their ids to DIR/{BAD_IDS}, for --config.data.exclude"
    return DoctorResult(**report, text=text)


def table(report: dict[str, Any]) -> str:
    """The report as text: a column per split, the warnings and the first bad clips."""
    splits = report["splits"]
    rows = [[report["dataset"], *splits]]
    for name in COLUMNS:
        rows.append([name.replace("_", " "), *(_cell(split, name) for split in splits.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines += _warning_lines(report["warnings"])
    bad = [entry for entry in report["bad"] if not entry["excluded"]]
    if count := len(report["bad"]) - len(bad):
        lines.append(f"data.exclude excludes {count} bad clips")
    if bad:
        lines.append(f"{len(bad)} clips are missing or broken:")
        lines += [f"  {entry['video_id']!r}: {entry['reason']}" for entry in bad[:SHOWN]]
        lines += [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    else:
        lines.append(
            "no other clip is missing or broken" if count else "no clip is missing or broken"
        )
    return "\n".join(lines)


def _cell(split: dict[str, Any], name: str) -> str:
    value = split[name]
    if name == "cut_captions":
        return str(value["count"])
    expected = (split["expected"] or {}).get(name, value)
    return f"{value:,}" if expected == value else f"{value:,} of {expected:,}"


def _warning_lines(warnings: list[dict[str, Any]]) -> list[str]:
    """A line per warning; of the kinds that concern one clip each, the first few and a count."""
    lines: list[str] = []
    counts: dict[str, int] = {}
    for warning in warnings:
        ids, split = warning["video_ids"], warning["split"]
        prefix = f"{split}: " if split else ""
        if warning["kind"] in ("damaged", "gap", "duplicate"):
            counts[warning["kind"]] = counts.get(warning["kind"], 0) + 1
            if counts[warning["kind"]] <= SHOWN:
                lines.append(f"{prefix}{ids[0]!r}: {warning['reason']}")
            continue
        shown = ", ".join(map(repr, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "")
        count = f"{len(ids)} " if ids else ""
        lines.append(f"{prefix}{count}{warning['reason']}" + (f" ({shown})" if ids else ""))
    more = [f"{n - SHOWN} more clips are {kind}" for kind, n in counts.items() if n > SHOWN]
    return [f"warning: {line}" for line in lines + more]
