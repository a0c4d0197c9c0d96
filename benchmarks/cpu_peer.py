"""Times this project against PyTorch on a CPU, in alternation.

    python benchmarks/cpu_peer.py [--only=step,similarity] [--repeats=5] [--size=tiny] [--json]

Rows: a training step of ViT-B/32 (batch 8, 12 frames, float32), the encoding of 8 clips and of
32 texts, the distillation of their 3 taps without and with its gradient, the scores of 200 texts
and 200 clips from their features, their whole evaluation, and the greatest resident memory of
each process after its training steps. Needs requirements-torch.txt.

Each side is a process of its own (`benchmarks/cpu_sides/`) and keeps what a row needs in memory
while the other one works. In each repeat a side multiplies two matrices of 4096 x 4096 and then
does the row's work; the sides take turns. Medians are reported, ratios above 1 mean that this
project is faster, and every row's result must be the same number on both sides.

PyTorch runs eagerly and scores in splits of 32, as the original does.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cpu_sides.common import SIZES, Sizes

ROWS = (  # the step comes first: the memory is that of training alone
    "step",
    "encode_clips",
    "encode_texts",
    "distillation",
    "distillation_gradient",
    "similarity",
    "evaluation",
)
SIDES = {"original": "torch_side.py", "ours": "jax_side.py"}
# Of a row's result on the two sides: near ties of the clustering are resolved differently.
TOLERANCE = 5e-3


class Side:
    """A process that answers commands."""

    def __init__(self, name: str, folder: str, size: str):
        self.name = name
        script = Path(__file__).with_name("cpu_sides") / SIDES[name]
        self.process = subprocess.Popen(
            [sys.executable, script, folder, size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, command: str) -> dict[str, float]:
        """The answer to a command. Exits, with what to do, if the process has ended."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(command, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: the process ended at `{command}`; its error is above")
        return json.loads(line)


@contextlib.contextmanager
def open_sides(size: str) -> Iterator[list[Side]]:
    """Both processes. The second to start reads the weights that the first has written."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Side("ours", folder, size)
        sides = [ours]
        try:
            ours.ask("ready")
            sides.insert(0, Side("original", folder, size))
            sides[0].ask("ready")
            yield sides
        finally:
            for side in sides:
                side.process.terminate()
                side.process.wait()


def measure_row(sides: list[Side], row: str, repeats: int, sizes: Sizes) -> dict[str, Any]:
    """Medians of a row: by side its seconds, GFLOP/s of the product, GiB; and the ratio."""
    values = {side.name: side.ask(f"build {row}")["value"] for side in sides}
    a, b = values.values()
    if not abs(a - b) <= TOLERANCE * abs(a):
        sys.exit(f"{row}: the original's result is {a:.6g}, ours {b:.6g}: not the same work")
    answers: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            answers[side.name].append(side.ask("time"))
    result: dict[str, Any] = {}
    for side in sides:
        times = [x["s"] for x in answers[side.name]]
        products = [x["product_s"] for x in answers[side.name]]
        result[side.name] = {
            "s": statistics.median(times),
            "s_all": times,
            "product_gflop_per_s": 2e-9 * sizes.product**3 / statistics.median(products),
            "peak_gib": side.ask("drop")["peak_gib"],
        }
    result["ratio"] = result["original"]["s"] / result["ours"]["s"]
    return result


def lines_of(results: dict[str, dict]) -> Iterator[str]:
    """The results as a table."""
    yield f"{'':<24}{'original':>12}{'ours':>12}{'ratio':>8}   product, GFLOP/s"
    for row, result in results.items():
        original, ours = (result[side] for side in SIDES)
        yield (
            f"{row:<24}{original['s']:>10.3f} s{ours['s']:>10.3f} s{result['ratio']:>8.2f}"
            f"   {original['product_gflop_per_s']:.0f} and {ours['product_gflop_per_s']:.0f}"
        )
    if "step" in results:
        a, b = (results["step"][side]["peak_gib"] for side in SIDES)
        yield f"{'memory of training':<24}{a:>8.2f} GiB{b:>8.2f} GiB{a / b:>8.2f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    only = args.only.split(",")
    if unknown := [row for row in only if row not in ROWS]:
        parser.error(f"--only: no row is called {unknown[0]!r}; there are {', '.join(ROWS)}")
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    results = {}
    with open_sides(args.size) as sides:
        for row in ROWS:
            if row in only:
                results[row] = measure_row(sides, row, args.repeats, SIZES[args.size])
                print(f"{row}: {results[row]['ratio']:.2f}", file=sys.stderr, flush=True)
    print(json.dumps(results, indent=2) if args.json else "\n".join(lines_of(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
