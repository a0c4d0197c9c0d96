"""Kills training at random moments, resumes it each time, and compares with an undisturbed run.

    python benchmarks/kills.py --clips=DIR --out=NEW [--kills=20] [--processes=1] [--seed=0]

DIR is a folder of clips (`data.root`). SIGKILL and SIGTERM alternate, each sent to one process;
the other processes of the run are then ended, as Slurm does. Exits with 0 if the rows of
metrics.jsonl (except `measured`), the final weights and the evaluation metrics equal those of
the undisturbed run bit for bit, otherwise with 1.
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


def start(args: argparse.Namespace, workdir: Path) -> list[subprocess.Popen]:
    """Starts the command in `args.processes` processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [sys.executable, "run.py", "train", "--config=configs/folder.py", "--json"]
    command += [f"--config.data.root={args.clips}", f"--workdir={workdir}"]
    command += ["--config.model.variant=tiny", "--config.data.max_frames=4"]
    command += ["--config.train.batch_size=8", "--config.eval.batch_size=8"]
    command += [f"--config.train.steps={args.steps}", "--config.train.log_every=1"]
    command += ["--config.train.checkpoint_every=5", "--config.train.eval_every=20"]
    processes = []
    for i in range(args.processes):
        flags = [f"--coordinator={address}", f"--processes={args.processes}", f"--process={i}"]
        log = open(workdir.parent / f"{workdir.name}.{i}.log", "a")
        processes.append(
            subprocess.Popen(
                command + (flags if args.processes > 1 else []),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                # Its own process group, so that its children can be killed with it.
                start_new_session=True,
                env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled")},
            )
        )
    return processes


def rows(workdir: Path) -> list[dict]:
    """The complete rows of metrics.jsonl, without `measured`."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "measured"} for line in lines]


def last_step(workdir: Path) -> int:
    return max((row["step"] for row in rows(workdir)), default=0)


def last_checkpoint(workdir: Path) -> int:
    steps = (path.name for path in (workdir / "checkpoints").glob("[0-9]*"))
    return max((int(step) for step in steps if step.isdigit()), default=0)


def end_all(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """Waits for all to end, kills those still running after `seconds`; returns the statuses."""
    deadline = time.monotonic() + seconds
    for p in processes:
        try:
            p.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
    return [p.returncode for p in processes]


def disturb(args: argparse.Namespace, workdir: Path) -> tuple[int, int]:
    """Runs to the end with kills on the way: how many there were, most steps lost to one."""
    rng, done, lost = random.Random(args.seed), 0, 0
    while done < args.kills:
        first = last_step(workdir)
        processes = start(args, workdir)
        begin, signal_ = time.monotonic(), [signal.SIGKILL, signal.SIGTERM][done % 2]
        # The remaining steps are shared among the remaining kills. Some kills come before the
        # first step of a start, or after the last.
        share = (args.steps - first) / (args.kills - done + 1)
        target = first + rng.randint(-1, round(2 * share))
        pause = rng.random() * (args.pause if target < first else 0.5)
        while all(p.poll() is None for p in processes) and time.monotonic() - begin < 600:
            if target < first or last_step(workdir) >= target:
                break
            time.sleep(0.02)
        time.sleep(pause)
        reached = last_step(workdir)
        if all(p.poll() is None for p in processes):
            os.killpg(rng.choice(processes).pid, signal_)
            done += 1
        statuses = end_all(processes, 60 if signal_ is signal.SIGTERM else 1)
        if set(statuses) == {0}:
            break  # the run finished
        checkpoint = last_checkpoint(workdir)
        lost = max(lost, reached - checkpoint)
        print(f"{done}: {signal_.name} at step {reached}, checkpoint {checkpoint}", flush=True)
    if set(statuses := end_all(start(args, workdir), 1800)) != {0}:
        raise SystemExit(f"the run did not finish: statuses {statuses}, see {workdir}.*.log")
    return done, lost


def weights_of(workdir: Path) -> dict[str, np.ndarray]:
    """All parameters of the last step."""
    from flax.traverse_util import flatten_dict

    from hvp_jax.checkpoints import checkpointer, model_card

    with checkpointer.Checkpointer(workdir, max_to_keep=1) as checkpoints:
        shapes = model_card.card_shapes(model_card.read_card(workdir))
        return flatten_dict(checkpoints.params(checkpoints.latest(), shapes), sep="/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--pause", type=float, default=15.0, help="longest before a kill")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.clips, out = args.clips.absolute(), args.out.absolute()
    out.mkdir(parents=True)
    undisturbed, killed = out / "undisturbed", out / "killed"
    if set(end_all(start(args, undisturbed), 1800)) != {0}:
        raise SystemExit(f"the undisturbed run failed, see {undisturbed}.*.log")
    done, lost = disturb(args, killed)
    a, b = weights_of(undisturbed), weights_of(killed)
    results = [json.loads((run / "eval.json").read_text()) for run in (undisturbed, killed)]
    same = {
        "rows": rows(undisturbed) == rows(killed),
        "weights": a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a),
        "metrics": all(results[0][k] == results[1][k] for k in ("text_to_video", "video_to_text")),
    }
    compared = ", ".join(f"{name} {'same' if equal else 'DIFFER'}" for name, equal in same.items())
    print(f"{done} kills, at most {lost} steps lost: {compared}")
    return 0 if all(same.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
