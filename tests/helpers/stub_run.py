"""`python stub_run.py train|prepare ...`: what a sweep sees of a run, without the training.

A run has the steps of its config, 0.05 s each, and resumes after the last. Its result depends on
the seed and the steps that it has done. It appends its name to RUNS, a file beside the folder of
the runs, fails if weight_decay is 13, and saves and ends after a SIGTERM, unless max_words is 13.
"""

import json
import signal
import sys
import time
from pathlib import Path

from hvp_jax.monitoring.workdir_lock import WorkdirLock

RUNS = "started.txt"


def train(config: dict, seed: int, workdir: Path) -> int:
    lock = WorkdirLock(workdir)
    while not lock.attempt():
        time.sleep(0.01)
    if lock.refusal:
        print(f"error: {lock.refusal}", file=sys.stderr)
        return 2
    try:
        return steps(config, seed, workdir)
    finally:
        lock.release()


def steps(config: dict, seed: int, workdir: Path) -> int:
    stopped = []

    def stop(number, frame):  # a second signal ends it, as it does a run
        stopped.append(number)
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop if config["data"]["max_words"] != 13 else signal.SIG_IGN)
    with open(workdir.parents[2] / RUNS, "a") as file:
        file.write(f"{workdir.parent.name}/{workdir.name}\n")
    if config["optimizer"]["weight_decay"] == 13:
        print("a warning\nerror: made to fail", file=sys.stderr)
        return 1
    (workdir / "config.json").write_text(json.dumps(config))
    path = workdir / "metrics.jsonl"
    rows = path.read_text().splitlines() if path.exists() else []
    for step in range(len(rows) + 1, config["train"]["steps"] + 1):
        time.sleep(0.05)
        rows.append(json.dumps({"step": step, "loss": seed + step}))
        path.write_text("\n".join(rows) + "\n")
        if stopped:
            print(f"stopped at step {step}")
            return 1
    taps = config["model"]["taps"]
    (workdir / "eval.json").write_text(json.dumps({"rows": rows, "taps": taps, "seed": seed}))
    return 0


def prepare(config: dict) -> int:
    shards = Path(config["data"]["shards"])
    if config["data"]["max_frames"] == 13:
        print("error: 13 frames", file=sys.stderr)
        return 1
    folder = shards / "clips" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text('{"texts": {}}')
    with open(shards.parents[1] / RUNS, "a") as file:
        file.write("prepare\n")
    return 0


if __name__ == "__main__":
    flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[2:])
    config = json.loads(Path(flags["config"]).read_text())
    if sys.argv[1] == "prepare":
        sys.exit(prepare(config))
    sys.exit(train(config, int(flags["config.seed"]), Path(flags["workdir"])))
