"""A sweep's table as Markdown, CSV and LaTeX: figures, differences to the base, and costs."""

import csv as csv_files
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from hvp_jax.sweeps.setting_result import FIGURES, SettingResult

HEADER = (*(f"T2V {name}" for name in FIGURES), *(f"V2T {name}" for name in FIGURES), "rsum")
LEGEND = (
    "R@k in percent; mean ± standard deviation over seeds. Differences: to the base, paired by "
    "query and seed, with a 95% interval; * where it excludes 0, Holm-corrected over the settings."
)
SPECIAL = {c: "\\" + c for c in "&%$#_{}"}
SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {"±": r"$\pm$", "*": "$^{*}$", "<": "$<$", ">": "$>$", "|": "$|$"}


class Section(NamedTuple):
    """One of the three tables, as text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(base: str, settings: Sequence[SettingResult], failed: Sequence[dict[str, Any]]) -> str:
    """The three tables, what is to be said about a row, and the runs without a result."""
    parts = []
    for title, header, rows in _sections(base, settings):
        rule = ["---", *["---:"] * (len(header) - 1)]
        cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
        lines = [f"| {' | '.join(line)} |" for line in (header, rule, *cells)]
        parts.append(f"{title}:\n\n" + "\n".join(lines))
    parts.append(LEGEND)
    notes = [f"- {row.name}: {row.note}" for row in settings if row.note]
    if notes:
        parts.append("\n".join(notes))
    if failed:
        lines = [f"- {row['setting']}, seed {row['seed']}: {row['reason']}" for row in failed]
        parts.append("\n".join(["Runs without a result:", "", *lines]))
    return "\n\n".join(parts)


def latex(base: str, settings: Sequence[SettingResult]) -> str:
    """The three tables as `tabular`s, with the lines of the package booktabs."""
    parts = ["% \\usepackage{booktabs}\n"]
    for title, header, rows in _sections(base, settings):
        head, *body = [
            " & ".join("".join(SPECIAL.get(c, c) for c in cell) for cell in row) + r" \\"
            for row in (header, *rows)
        ]
        lines = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule", head]
        lines += [r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
        parts.append(f"% {title}\n" + "\n".join(lines) + "\n")
    notes = [f"% {row.name}: {row.note}\n" for row in settings if row.note]
    return "\n".join(parts) + "".join(notes)


def csv(settings: Sequence[SettingResult]) -> str:
    """A line for each setting with all numbers in full; empty where there is none."""
    costs = list(dict.fromkeys(key for row in settings for key in row.cost))
    header = ["setting", "seeds"]
    for name in HEADER:
        header += [name, f"{name} std"]
        header += [f"{name} difference {part}" for part in ("mean", "low", "high", "significant")]
    file = io.StringIO()
    writer = csv_files.writer(file, lineterminator="\n")
    writer.writerow([*header, *costs, "note"])
    for row in settings:
        cells: list[Any] = [row.name, " ".join(map(str, row.seeds))]
        for mean, difference in zip(_means(row), _differences(row), strict=True):
            cells += [mean.get("mean"), mean.get("std")]
            cells += [difference.get(part) for part in ("mean", "low", "high", "significant")]
        writer.writerow([*cells, *(row.cost.get(key) for key in costs), row.note])
    return file.getvalue()


def _sections(base: str, settings: Sequence[SettingResult]) -> list[Section]:
    figures, differences, costs = [], [], []
    for row in settings:
        name = f"{row.name} (base)" if row.name == base else row.name
        figures.append([name, str(len(row.seeds)), *map(_mean, _means(row))])
        if row.name != base:
            differences.append([row.name, *map(_difference, _differences(row))])
        cost = row.cost
        costs.append(
            [
                name,
                _number(cost.get("step_ms")),
                _number(cost.get("peak_memory_mib")),
                _number(cost.get("parameters"), 1e6, 2),
                _number(cost.get("flops_per_step"), 1e9),
            ]
        )
    names = ["step, ms", "peak memory, MiB", "parameters, M", "GFLOP per step"]
    return [
        Section("Figures", ["setting", "seeds", *HEADER], figures),
        Section(f"Difference to {base}", ["setting", *HEADER], differences),
        Section("Costs", ["setting", *names], costs),
    ]


def _means(row: SettingResult) -> list[dict[str, float | None]]:
    """In the order of HEADER; {} where there is none."""
    directions = [
        d.get(name, {}) for d in (row.text_to_video, row.video_to_text) for name in FIGURES
    ]
    return [*directions, row.rsum]


def _differences(row: SettingResult) -> list[dict[str, Any]]:
    """In the order of HEADER; {} where there is none."""
    both = (row.difference, row.difference_video_to_text)
    return [*(d.get(name, {}) for d in both for name in FIGURES), row.difference_rsum]


def _mean(value: dict[str, float | None]) -> str:
    if value.get("mean") is None:
        return "-"
    std = value["std"]
    return f"{value['mean']:.1f}" if std is None else f"{value['mean']:.1f} ± {std:.1f}"


def _difference(value: dict[str, Any]) -> str:
    if not value:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:+.1f}"
    mark = " *" if value["significant"] else ""
    return f"{value['mean']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}]{mark}"


def _number(value: float | None, unit: float = 1, digits: int = 1) -> str:
    return "-" if value is None else f"{value / unit:,.{digits}f}"
