"""One of two processes of four devices each: five steps of every layout, and some scores.

`python one_of_two.py ADDRESS PROCESS OUT`: process 0 writes what came of it to OUT, an .npz.
`tests/test_processes.py` compares that with what one device gives.
"""

import functools
import sys

import jax
import numpy as np

LAYOUTS = {
    "pmap": ("pmap", False),
    "shard_map": ("shard_map", True),  # with weights and moments in parts
}
STEPS = 5


def main(address: str, process: int, out: str) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    jax.config.update("jax_disable_most_optimizations", True)
    from hvp_jax.parallel import Layout, gather, is_first, wait

    assert (jax.local_device_count(), jax.device_count()) == (4, 8)
    found = {}
    for name, how in LAYOUTS.items():
        for key, value in steps(Layout(*how), process).items():
            found[f"{name}/{key}"] = value
    assert gather(np.array([process])).ravel().tolist() == [0, 1]
    if is_first():
        np.savez(out, **found)
    wait("the end")


def steps(layout, process: int) -> dict[str, np.ndarray]:
    """The losses of five steps, what the first gradient's norm was, and the weights after."""
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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
