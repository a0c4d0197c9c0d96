"""The result of `bench --config.bench=tpu` in Markdown."""

from ml_collections import ConfigDict

from hvp_jax.bench.tpu.estimate import BETWEEN
from hvp_jax.bench.tpu.parts import PARTS
from hvp_jax.bench.tpu.result import SliceResult, TpuResult
from hvp_jax.models.hvpnet import HVPNet

CAVEAT = (
    "Estimates of TPU's compiler, not measurements: the sum of its cycles for every instruction; "
    "kernels at their arithmetic at the peak plus their bytes at the full bandwidth; collectives "
    "at the bandwidth of the links, as if nothing hid them. Copies between the memories of a chip "
    "are not in the sum."
)


def text_of(result: TpuResult, config: ConfigDict, model: HVPNet) -> str:
    sharding = f"{config.parallel}{' with fsdp' if config.fsdp else ''}"
    sections = [
        f"{config.model.variant}, {model.dtype}, {config.data.max_frames} frames, "
        f"{config.data.max_words} words, remat {config.model.remat}, {sharding}.",
        _steps(result),
        _parts(result),
        _collectives(result),
        *_notes(result),
        CAVEAT,
    ]
    return "\n\n".join(section for section in sections if section)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _steps(result: TpuResult) -> str:
    """A line for each slice; a batch that does not fit is struck out."""
    lines = [
        _row(
            *("slice", "chips", "batch", "a chip", "GiB a chip", "of", "estimated ms"),
            *("of it kernels", "measured ms", "at the peak, ms", "share of the peak"),
            *("copies ms", "CPU s to compile"),
        ),
        "| --- |" + " ---: |" * 12,
    ]
    for name, row in result.topologies.items():
        gib = _number(row.gib_per_chip)
        cells = [
            *(_number(row.estimated_ms), _number(sum(row.kernels.values())), ""),
            *(_number(row.ideal_ms), "", _number(row.copies_ms), _number(row.compile_cpu_s, 0)),
        ]
        cells[2] = _number(row.measured_ms)
        cells[4] = "" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"
        sizes = f"{row.batch_size:,}", _number(row.batch_size / row.chips, 0)
        if not row.fits:
            sizes = f"~~{result.batch_size:,}~~ {sizes[0]}", sizes[1]
            gib = f"~~{gib}~~"
        lines.append(_row(name, str(row.chips), *sizes, gib, _number(row.gib_of_a_chip), *cells))
    return "\n".join(lines)


def _by_slice(result: TpuResult, title: str, rows: dict[str, dict[str, str]]) -> str:
    names = list(result.topologies)
    lines = [_row(title, *names), "| --- |" + " ---: |" * len(names)]
    lines += [
        _row(name, *(cells.get(n, "") for n in names)) for name, cells in rows.items() if cells
    ]
    return "\n".join(lines) if len(lines) > 2 else ""


def _parts(result: TpuResult) -> str:
    def cells(value) -> dict[str, str]:
        values = {name: value(row) for name, row in result.topologies.items()}
        return {name: _number(x, 2) for name, x in values.items() if x is not None}

    rows = {part: cells(lambda row, p=part: row.parts.get(p)) for part in PARTS}
    kernels = {kernel for row in result.topologies.values() for kernel in row.kernels}
    rows |= {f"kernel {k}": cells(lambda row, k=k: row.kernels.get(k)) for k in sorted(kernels)}
    return _by_slice(result, "part, ms", rows)


def _collectives(result: TpuResult) -> str:
    def cell(row: SliceResult, kind: str) -> str:
        use = row.collectives[kind]
        return (
            f"{use.count:,.0f} ({use.asynchronous:,.0f} asynchronous), {use.bytes / 2**20:,.1f} "
            f"MiB, {use.ms:.2f} ms"
        )

    kinds = {kind: None for row in result.topologies.values() for kind in row.collectives}
    rows = {
        kind: {n: cell(r, kind) for n, r in result.topologies.items() if kind in r.collectives}
        for kind in kinds
    }
    return _by_slice(result, "collective", rows)


def _notes(result: TpuResult) -> list[str]:
    notes = []
    if any(BETWEEN in kind for row in result.topologies.values() for kind in row.collectives):
        notes.append("What goes between slices is counted in bytes of a chip, and takes no time.")
    for name, row in result.topologies.items():
        if not row.fits:
            largest = row.largest_batch or "none"
            notes.append(
                f"{name}: a batch of {result.batch_size:,} does not fit; the largest that does: "
                f"{largest}. The compiler: {row.message}"
            )
        if row.loops_without_count:
            loops = ", ".join(row.loops_without_count)
            notes.append(f"{name}: loops whose length is unknown, counted once: {loops}")
    return notes
