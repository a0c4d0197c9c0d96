"""Indexes the held-out clips of `make demo` and searches them: the figures must be those of eval.

    python benchmarks/search_demo.py --workdir=demo

Writes the index and a contact sheet of ten captions to the workdir of the demo. Then it searches
for every caption with --exact, and compares recall and ranks with eval.json; the exit status is 1
if they differ.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.annotations import folder
from data.records import DatasetLocation
from hvp_jax.evaluation import metrics

TEN = 10


def run(*arguments: object, capture: bool = False) -> str:
    """Runs a verb, and returns what it prints if that is wanted."""
    command = [sys.executable, str(ROOT / "run.py"), *map(str, arguments)]
    print("\n$ python run.py", *arguments, flush=True)
    return subprocess.run(command, check=True, text=True, capture_output=capture).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("demo"), help="that of `make demo`")
    parser.add_argument("--output", type=Path, help="a folder for the index; else the workdir")
    arguments = parser.parse_args()
    workdir, output = arguments.workdir, arguments.output or arguments.workdir
    evaluated = workdir / "eval.json"
    if not evaluated.exists():
        print(f"error: {evaluated} does not exist; run `make demo` first", file=sys.stderr)
        return 2
    root = workdir / "clips"
    clips = folder.read(DatasetLocation("folder", str(root))).clips
    clips = [clip for clip in clips if clip.split == "test"]
    names = [str(Path(clip.path).relative_to(root)) for clip in clips]
    texts = [text for clip in clips for text in clip.captions]
    owners = [name for name, clip in zip(names, clips, strict=True) for _ in clip.captions]
    output.mkdir(exist_ok=True)
    (root / "held_out.txt").write_text("\n".join(names) + "\n")
    (output / "captions.txt").write_text("\n".join(texts) + "\n")
    (output / "ten_captions.txt").write_text("\n".join(texts[:TEN]) + "\n")

    index = f"--index={output / 'index'}"
    run("index", f"--weights={workdir}", f"--videos={root / 'held_out.txt'}", index)
    ten = f"--queries={output / 'ten_captions.txt'}"
    run("search", index, ten, "--k=5", f"--sheet={output / 'search.png'}")
    everything = f"--queries={output / 'captions.txt'}", "--exact", f"--k={len(names)}"
    found = json.loads(run("search", index, *everything, "--json", capture=True))["queries"]

    places = {name: i for i, name in enumerate(names)}
    matrix = np.empty((len(texts), len(names)), np.float32)
    for row, query in zip(matrix, found, strict=True):
        for hit in query["hits"]:
            row[places[hit["path"]]] = hit["score"]
    figures = metrics.text_to_video(matrix, np.array([places[name] for name in owners]))
    expected = json.loads(evaluated.read_text())["text_to_video"]
    print("\ntext to video, of all captions:")
    for name, value in expected.items():
        print(f"  {name:5} eval {value:8.2f}  search {figures[name]:8.2f}")
    same = all(abs(figures[name] - value) < 1e-6 for name, value in expected.items())
    print("the figures are equal" if same else "error: the figures differ")
    print(f"image: {output / 'search.png'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
