"""The results of a sweep: what its runs have left in their folders, as one table.

Every setting is compared with the base by the ranks of the same queries in runs of the same seeds.
Marks are Holm-corrected over the settings, for each figure and direction by itself.
"""

import dataclasses
from typing import Any

import numpy as np

from data.errors import DataError
from data.storage.path import Path
from hvp_jax.monitoring import json_files
from hvp_jax.sweeps import figure, manifest, statistics, table
from hvp_jax.sweeps.run_results import (
    RunResult,
    other_data,
    other_scoring,
    protocol,
    read_run,
)
from hvp_jax.sweeps.setting_result import FIGURES, SettingResult

DIRECTIONS = ("text_to_video", "video_to_text")
Runs = dict[int, RunResult]  # by seed


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The content of sweep.json; `text` is the table in Markdown.

    `failed` names every run without a result: {"setting", "seed", "reason"}.
    """

    sweep: str
    base: str
    seeds: list[int]
    settings: list[SettingResult]
    failed: list[dict[str, Any]]

    @property
    def text(self) -> str:
        return table.markdown(self.base, self.settings, self.failed)


def summarize(folder: Path) -> SweepResult:
    """Reads the manifest.json and the runs of a sweep's folder, and writes the table's files.

    These are sweep.json, table.md, table.csv, table.tex and table.png. A run that has failed, has
    not finished or cannot be read is named; the others stand. Raises UsageError if there is no
    sweep in `folder`, DataError if its manifest is damaged.
    """
    sweep = manifest.read(folder)
    runs: dict[str, Runs] = {}
    rows, failed = [], []
    for name, overrides in sweep.settings:
        runs[name], own = _read_setting(folder, name, sweep.seeds)
        rows.append(_setting(name, overrides, runs[name], own))
        failed += [{"setting": name} | reason for reason in own]
    rows = _compared(sweep.base, rows, runs)
    result = SweepResult(sweep.sweep, sweep.base, list(sweep.seeds), rows, failed)
    _write(folder, result)
    return result


def _write(folder: Path, result: SweepResult) -> None:
    json_files.write_json(folder / "sweep.json", json_files.to_json_types(result))
    json_files.write_text_atomically(folder / "table.md", result.text + "\n")
    json_files.write_text_atomically(folder / "table.csv", table.csv(result.settings))
    json_files.write_text_atomically(
        folder / "table.tex", table.latex(result.base, result.settings)
    )
    figure.draw(folder / "table.png", result.base, result.settings)


def _read_setting(
    folder: Path, name: str, seeds: tuple[int, ...]
) -> tuple[Runs, list[dict[str, Any]]]:
    """The finished runs of a setting that were evaluated alike, and why the others are not."""
    runs: Runs = {}
    failed: list[dict[str, Any]] = []
    for seed in seeds:
        try:
            run = read_run(manifest.run_folder(folder, name, seed))
            _require_alike(run, runs)
            runs[seed] = run
        except DataError as error:
            failed.append({"seed": seed, "reason": str(error)})
    return runs, failed


def _require_alike(run: RunResult, others: Runs) -> None:
    """Raises DataError if a run was evaluated otherwise than the first of its setting."""
    for seed, first in list(others.items())[:1]:
        here, there = protocol(run), protocol(first)
        if why := other_data(here, there) or other_scoring(here, there):
            raise DataError(f"evaluated otherwise than seed {seed}: {why}")


def _setting(
    name: str, overrides: dict[str, Any], runs: Runs, failed: list[dict[str, Any]]
) -> SettingResult:
    """The means over the runs of a setting, not yet compared."""
    of_runs = [
        statistics.figures({d: getattr(run.ranks, d) for d in DIRECTIONS}) for run in runs.values()
    ]

    def mean(figure: str) -> dict[str, float | None]:
        values = [row[figure] for row in of_runs]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return {"mean": float(np.mean(values)), "std": std}

    text_to_video, video_to_text = (
        {figure: mean(f"{direction}/{figure}") for figure in FIGURES} if runs else {}
        for direction in DIRECTIONS
    )
    return SettingResult(
        name=name,
        overrides=overrides,
        seeds=list(runs),
        text_to_video=text_to_video,
        video_to_text=video_to_text,
        rsum=mean("rsum") if runs else {},
        cost=_cost(runs),
        failed=failed,
    )


def _cost(runs: Runs) -> dict[str, Any]:
    """The costs of a setting: medians over its runs, and the greatest peak of memory."""
    costs = [run.cost for run in runs.values() if run.cost]
    if not costs:
        return {}

    def known(key: str) -> list[float]:
        return [cost[key] for cost in costs if cost.get(key) is not None]

    step, memory = known("step_ms"), known("peak_memory_mib")
    return costs[0] | {
        "step_ms": float(np.median(step)) if step else None,
        "peak_memory_mib": max(memory) if memory else None,
    }


def _compared(
    base_name: str, rows: list[SettingResult], runs: dict[str, Runs]
) -> list[SettingResult]:
    """The settings with their differences to the base, or why they have none."""
    differences: dict[str, dict[str, statistics.Difference]] = {}
    notes: dict[str, str] = {}
    for row in rows:
        if row.name != base_name:
            differences[row.name], notes[row.name] = _difference(runs[row.name], runs[base_name])
    marked: set[tuple[str, str]] = set()
    for name in next((found for found in differences.values() if found), {}):
        tested = [setting for setting, found in differences.items() if found]
        marks = statistics.holm([differences[setting][name].p for setting in tested])
        marked |= {(setting, name) for setting, mark in zip(tested, marks, strict=True) if mark}

    def described(setting: str, name: str) -> dict[str, Any]:
        found = differences[setting].get(name)
        return found._asdict() | {"significant": (setting, name) in marked} if found else {}

    def of_direction(setting: str, direction: str) -> dict[str, dict[str, Any]]:
        found = {name: described(setting, f"{direction}/{name}") for name in FIGURES}
        return found if differences[setting] else {}

    return [
        dataclasses.replace(
            row,
            difference=of_direction(row.name, "text_to_video"),
            difference_video_to_text=of_direction(row.name, "video_to_text"),
            difference_rsum=described(row.name, "rsum"),
            note=notes[row.name],
        )
        if row.name in differences
        else row
        for row in rows
    ]


def _difference(runs: Runs, base: Runs) -> tuple[dict[str, statistics.Difference], str]:
    """Every figure's difference to the base, and what is to be said about it."""
    seeds = [seed for seed in runs if seed in base]
    if not seeds:
        return {}, "not compared: no seed has a result here and in the base"
    here, there = protocol(runs[seeds[0]]), protocol(base[seeds[0]])
    if why := other_data(here, there):
        return {}, f"not compared: {why}"
    found = statistics.differences(_ranks(base, seeds), _ranks(runs, seeds))
    if why := other_scoring(here, there):
        plain = {name: statistics.Difference(x.mean) for name, x in found.items()}
        return plain, f"another scoring than the base's, no interval: {why}"
    if len(seeds) == 1:
        return found, "no interval: one seed says nothing about the noise of runs"
    only = "" if len(seeds) == len(base) == len(runs) else f"compared over seeds {_listed(seeds)}"
    return found, only


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def _ranks(runs: Runs, seeds: list[int]) -> dict[str, statistics.Ranks]:
    first = runs[seeds[0]].ranks
    clips = {
        "text_to_video": first.clip_of_caption,
        "video_to_text": np.arange(len(first.clip_ids)),
    }
    return {
        d: statistics.Ranks(np.stack([getattr(runs[seed].ranks, d) for seed in seeds]), clips[d])
        for d in DIRECTIONS
    }
