"""One of two processes of four devices each: five steps of every layout, and some figures.

`tests/parallel/test_processes.py` starts both, and compares what they leave with what one
process does.
"""

import functools
from pathlib import Path

import jax
import numpy as np

LAYOUTS = {
    "pmap": ("pmap", False),
    "shard_map": ("shard_map", True),  # with weights and moments in parts
}
STEPS = 5


def main(address: str, process: int, out: Path) -> None:
    """Process 0 writes what it found to the file `out`."""
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    from hvp_jax.parallel.partitioner import Layout
    from hvp_jax.parallel.processes import gather, is_first, wait

    assert (jax.local_device_count(), jax.device_count()) == (4, 8)
    assert gather(np.array([process])).ravel().tolist() == [0, 1]
    found = {}
    for name, how in LAYOUTS.items():
        for key, value in steps(Layout(*how), process).items():
            found[f"{name}/{key}"] = value
    found["scores"] = scores(Layout("shard_map"))
    if is_first():
        np.savez(out, **found)
    wait("the end")


class Pictures(dict):
    """A source of pictures."""


def scores(layout) -> np.ndarray:
    """Of five captions and clips of noise, with the weights that the steps began with."""
    from configs.base import get_config
    from data.records import Clip
    from hvp_jax.evaluation import scorer
    from tests.helpers.small import random_params
    from tests.helpers.train_steps import FRAMES, MODEL, WORDS, batch_of

    config = get_config()
    config.eval.batch_size, config.data.frames, config.data.words = 2, FRAMES, WORDS
    clips = [Clip(f"clip{i}", "", (f"{i} is a clip",), "test") for i in range(5)]
    side = MODEL.sizes.image_size
    noise = np.random.default_rng(0).integers(0, 256, (5, FRAMES, side, side, 3), np.uint8)
    source = Pictures((clip.clip_id, noise[i]) for i, clip in enumerate(clips))
    source.size, source.longest = side, FRAMES
    params = layout.whole(layout.place(random_params(MODEL, *batch_of(0).values())))
    return scorer.figures(scorer.Scorer(MODEL, config, layout, FRAMES), params, clips, source)[1]


def steps(layout, process: int) -> dict[str, np.ndarray]:
    """Losses and norms of the gradients of five steps, and the weights after them."""
    from hvp_jax.parallel.processes import wait
    from hvp_jax.training.step_spec import Recipe
    from hvp_jax.training.train_state import new_state
    from hvp_jax.training.train_step import train_step
    from hvp_jax.weights import torch_params
    from tests.helpers.small import random_params
    from tests.helpers.train_steps import BATCH, MODEL, OPTIMIZER, batch_of

    params = random_params(MODEL, *batch_of(0).values())
    state = layout.place(new_state(params, OPTIMIZER))
    recipe = Recipe(MODEL, OPTIMIZER, seed=3)
    laid = layout.train(functools.partial(train_step, recipe=recipe), state)
    half = slice(process * BATCH // 2, (process + 1) * BATCH // 2)
    losses, norms = [], []
    for i in range(STEPS):
        batch = layout.put({key: x[half] for key, x in batch_of(i).items()}, stop=process == 1)
        if i == 0:
            laid.lower(state, batch).compile()
            wait("compiled")
        state, metrics = laid(state, batch)
        metrics = jax.device_get(metrics)
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
        assert metrics["stop"] == 1  # process 0 hears of the wish of process 1
    # There and back, as to a checkpoint and from it.
    state = layout.from_store(layout.to_store(state))
    whole = torch_params.flatten(jax.device_get(layout.whole(state.params)))
    return {"losses": losses, "norms": norms} | {f"params/{k}": v for k, v in whole.items()}
