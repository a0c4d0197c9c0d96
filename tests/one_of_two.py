"""One of two processes of four devices each: five steps of every layout, then runs of the command.

`tests/test_processes.py` starts both, and compares what they leave with what one process does.
"""

import functools
import json
import os
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np

LAYOUTS = {
    "pmap": ("pmap", False),
    "shard_map": ("shard_map", True),  # with weights and moments in parts
}
STEPS = 5
RUN_STEPS = 7


def main(address: str, process: int, folder: Path, train: list[str]) -> None:
    """Process 0 writes steps.npz to `folder`; both write the answers of their runs."""
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    from hvp_jax.parallel import Layout, gather, is_first, wait

    assert (jax.local_device_count(), jax.device_count()) == (4, 8)
    assert gather(np.array([process])).ravel().tolist() == [0, 1]
    found = {}
    for name, how in LAYOUTS.items():
        for key, value in steps(Layout(*how), process).items():
            found[f"{name}/{key}"] = value
    if is_first():
        np.savez(folder / "steps.npz", **found)
    whole, stopped = folder / "whole", folder / "stopped"
    answers = [run(train, whole)]
    if process == 1:
        threading.Thread(target=stop_after_two_rows, args=(stopped,), daemon=True).start()
    answers += [run(train, stopped), run(train, stopped)]
    (folder / f"answers_{process}.json").write_text(json.dumps(answers))
    wait("the end")


def run(train: list[str], workdir: Path) -> dict:
    """The command's answer; it is not `cli.main`, which ends a process of several that failed."""
    from hvp_jax import cli

    function, values = cli.check([*train, f"--workdir={workdir}"])
    return json.loads(json.dumps(function(**values)))


def stop_after_two_rows(workdir: Path) -> None:
    """What a pod does to a host that it takes back."""
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def steps(layout, process: int) -> dict[str, np.ndarray]:
    """Losses and norms of the gradients of five steps, and the weights after them."""
    from test_step import BATCH, MODEL, OPTIMIZER, batch_of, random_params

    from hvp_jax import names, parallel, step

    params = random_params(MODEL, *batch_of(0).values())
    state = layout.place(step.new_state(params, OPTIMIZER))
    recipe = step.Recipe(MODEL, OPTIMIZER, seed=3)
    train_step = layout.train(functools.partial(step.train_step, recipe=recipe), state)
    half = slice(process * BATCH // 2, (process + 1) * BATCH // 2)
    losses, norms = [], []
    for i in range(STEPS):
        batch = layout.put({key: x[half] for key, x in batch_of(i).items()}, stop=process == 1)
        if i == 0:
            train_step.lower(state, batch).compile()
            parallel.wait("compiled")
        state, metrics = train_step(state, batch)
        metrics = jax.device_get(metrics)
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
        assert metrics["stop"] == 1  # process 0 hears of the wish of process 1
    # There and back, as to a checkpoint and from it.
    state = layout.from_store(layout.to_store(state))
    whole = names.flatten(jax.device_get(layout.whole(state.params)))
    return {"losses": losses, "norms": norms} | {f"params/{k}": v for k, v in whole.items()}
