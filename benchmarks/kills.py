"""Kills training at random moments, starts it again each time, compares with an undisturbed run.

    python benchmarks/kills.py --clips=DIR --out=NEW [--kills=20] [--processes=1] [--seed=0]

DIR is a folder of clips (`data.root`). Half of the kills are SIGKILL, half SIGTERM, to one
process. What is left of several is ended then, as Slurm does. Exit status 1 unless rows of
metrics.jsonl (but for what was measured), final weights and figures are those of the undisturbed
run: bit for bit.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def start(given: argparse.Namespace, workdir: Path) -> list[subprocess.Popen]:
    """The command, in as many processes as are asked for."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [sys.executable, "run.py", "train", "--config=configs/folder.py", "--json"]
    command += [f"--config.data.root={given.clips}", f"--workdir={workdir}"]
    command += ["--config.model.variant=tiny", "--config.data.max_frames=4"]
    command += ["--config.train.batch_size=8", "--config.eval.batch_size=8"]
    command += [f"--config.train.steps={given.steps}", "--config.train.log_every=1"]
    command += ["--config.train.checkpoint_every=5", "--config.train.eval_every=20"]
    processes = []
    for i in range(given.processes):
        more = [f"--coordinator={address}", f"--processes={given.processes}", f"--process={i}"]
        log = open(workdir.parent / f"{workdir.name}.{i}.log", "a")
        processes.append(
            subprocess.Popen(
                command + (more if given.processes > 1 else []),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                # A group of its own, so that what it started can be ended with it.
                start_new_session=True,
                env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled")},
            )
        )
    return processes


def rows(workdir: Path) -> list[dict]:
    """Those of metrics.jsonl, whole ones, but for what was measured."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "measured"} for line in lines]


def end_all(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """The statuses, once all have ended; those that have not within `seconds` are killed."""
    until = time.monotonic() + seconds
    for p in processes:
        try:
            p.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
    return [p.returncode for p in processes]


def disturb(given: argparse.Namespace, workdir: Path) -> tuple[int, int]:
    """Runs to the end with kills on the way: how many came in time, most steps lost to one."""
    dice, done, lost = random.Random(given.seed), 0, 0
    while done < given.kills:
        at_start = max((row["step"] for row in rows(workdir)), default=0)
        processes = start(given, workdir)
        begin, how = time.monotonic(), [signal.SIGKILL, signal.SIGTERM][done % 2]
        # Every so often it hits what comes before the first step, or after the last.
        share = (given.steps - at_start) / (given.kills - done + 1)  # so that all find their place
        wanted = at_start + dice.randint(-1, round(2 * share))
        pause = dice.random() * (given.pause if wanted < at_start else 0.5)
        while all(p.poll() is None for p in processes) and time.monotonic() - begin < 600:
            now = max((row["step"] for row in rows(workdir)), default=0)
            if wanted < at_start or now >= wanted:
                break
            time.sleep(0.02)
        time.sleep(pause)
        before = max((row["step"] for row in rows(workdir)), default=0)
        if all(p.poll() is None for p in processes):
            os.killpg(dice.choice(processes).pid, how)
            done += 1
        statuses = end_all(processes, 60 if how is signal.SIGTERM else 1)
        if set(statuses) == {0}:
            break  # it has come to the end by itself
        there = [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdigit()]
        lost = max(lost, before - max(there, default=0))
        print(
            f"{done}: {how.name} at step {before}, checkpoint {max(there, default=0)}", flush=True
        )
    if set(statuses := end_all(start(given, workdir), 1800)) != {0}:
        raise SystemExit(f"the run did not come to its end: {statuses}, see {workdir}.*.log")
    return done, lost


def weights_of(workdir: Path) -> dict[str, np.ndarray]:
    """All parameters of the last step."""
    from hvp_jax.checkpoints import checkpointer, model_card
    from hvp_jax.weights import torch_params

    with checkpointer.Checkpointer(workdir, max_to_keep=1) as checkpoints:
        shapes = model_card.card_shapes(model_card.read_card(workdir))
        return torch_params.flatten(checkpoints.params(checkpoints.latest(), shapes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--pause", type=float, default=15.0, help="at most, of a kill before steps")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.clips, out = given.clips.absolute(), given.out.absolute()
    out.mkdir(parents=True)
    if set(end_all(start(given, out / "whole"), 1800)) != {0}:
        raise SystemExit(f"the undisturbed run failed, see {out}/whole.*.log")
    done, lost = disturb(given, out / "killed")
    whole, killed = out / "whole", out / "killed"
    same_rows = rows(whole) == rows(killed)
    a, b = weights_of(whole), weights_of(killed)
    same_weights = a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    figures = [json.loads((w / "eval.json").read_text()) for w in (whole, killed)]
    ways = ("text_to_video", "video_to_text")
    same_figures = all(figures[0][way] == figures[1][way] for way in ways)
    print(
        f"{done} kills, at most {lost} steps lost: rows {'same' if same_rows else 'DIFFER'}, "
        f"weights {'same' if same_weights else 'DIFFER'}, "
        f"figures {'same' if same_figures else 'DIFFER'}"
    )
    return 0 if same_rows and same_weights and same_figures else 1


if __name__ == "__main__":
    sys.exit(main())
