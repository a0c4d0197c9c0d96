"""The verb `doctor`: what is missing, broken or odd in a data set."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data import inputs
from data.checks import doctor, exclude
from hvp_jax.monitoring import json_files

BAD_IDS = "bad_ids.txt"
SHOWN = 5  # bad clips and ids that the text names
COLUMNS = (
    *("videos", "captions", "uncaptioned", "missing", "broken", "excluded", "damaged", "short"),
    *("long", "black", "duplicates", "empty_captions", "repeated_captions", "cut_captions"),
)


def run(config: ConfigDict, workdir: Path | None = None) -> dict[str, Any]:
    """Looks at every clip and caption; `ok` is whether a run would train on nothing broken.

    With a `workdir`, writes doctor.json there and the ids of all bad clips, for `data.exclude`.
    """
    data = config.data
    ids = exclude.read_ids(data.exclude)
    told = inputs.read_annotations(inputs.location_from_config(config))
    if ids:
        exclude.excluded_clips(told.clips, ids)
    patients = doctor.inspect_clips(told.clips, data.max_frames)
    result = doctor.report(data.dataset, told, patients, data.max_words, excluded=ids)
    said = table(result)
    if workdir:
        json_files.make_workdir(workdir)
        json_files.write_json(workdir / "doctor.json", result)
        bad = dict.fromkeys(entry["video_id"] for entry in result["bad"])
        exclude.write_ids(workdir / BAD_IDS, list(bad))
        if not result["ok"]:
            said += f"\nleave them out with --config.data.exclude={workdir / BAD_IDS}"
    elif not result["ok"]:
        said += f"\n--workdir=DIR writes their ids to DIR/{BAD_IDS}, for --config.data.exclude"
    return result | {"text": said}


def table(result: dict[str, Any]) -> str:
    """The findings for a person: a column a split, what is odd, the first bad clips."""
    splits = result["splits"]
    rows = [[result["dataset"], *splits]]
    for name in COLUMNS:
        rows.append([name.replace("_", " "), *(_cell(split, name) for split in splits.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines += _told(result["warnings"])
    bad = [entry for entry in result["bad"] if not entry["excluded"]]
    if left := len(result["bad"]) - len(bad):
        lines.append(f"data.exclude leaves out {left} bad clips")
    if bad:
        lines.append(f"{len(bad)} clips are missing or broken:")
        lines += [f"  {entry['video_id']!r}: {entry['reason']}" for entry in bad[:SHOWN]]
        lines += [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    else:
        lines.append("no clip that is left is missing or broken")
    return "\n".join(lines)


def _cell(split: dict[str, Any], name: str) -> str:
    value = split[name]
    if name == "cut_captions":
        return str(value["count"])
    known = (split["expected"] or {}).get(name, value)
    return f"{value:,}" if known == value else f"{value:,} of {known:,}"


def _told(warnings: list[dict[str, Any]]) -> list[str]:
    """A line a warning; those that each tell of one clip are gathered by their kind."""
    lines, seen = [], {}
    for warning in warnings:
        ids, split = warning["video_ids"], warning["split"]
        place = f"{split}: " if split else ""
        if warning["kind"] in ("damaged", "duplicate"):
            seen[warning["kind"]] = seen.get(warning["kind"], 0) + 1
            if seen[warning["kind"]] <= SHOWN:
                lines.append(f"{place}{ids[0]!r}: {warning['reason']}")
            continue
        named = ", ".join(map(repr, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "")
        count = f"{len(ids)} " if ids else ""
        lines.append(f"{place}{count}{warning['reason']}" + (f" ({named})" if ids else ""))
    more = [f"{n - SHOWN} more clips are {kind}" for kind, n in seen.items() if n > SHOWN]
    return [f"warning: {line}" for line in lines + more]
