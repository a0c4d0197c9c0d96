"""One of two processes with four devices each: five steps and scores, and a golden run.

`tests/parallel/test_processes.py` starts both and compares their results with one process.
"""

import functools
from pathlib import Path

import jax
import numpy as np

PARTITIONERS = {
    "pmap": ("pmap", False),
    "shard_map": ("shard_map", True),  # with parameters and moments sharded
}
STEPS = 5


def main(address: str, process: int, out: Path) -> None:
    """Process 0 writes the results to the file `out`."""
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    from hvp_jax.parallel.partitioner import Partitioner
    from hvp_jax.parallel.processes import all_gather_hosts, barrier, is_primary

    assert (jax.local_device_count(), jax.device_count()) == (4, 8)
    assert all_gather_hosts(np.array([process])).ravel().tolist() == [0, 1]
    results = steps(Partitioner(*PARTITIONERS["shard_map"]), process)
    results["scores"] = scores(Partitioner("shard_map"))
    share_workdir(Path(out).parent / "run")
    if is_primary():
        np.savez(out, **results)
    barrier("the results are written")


def share_workdir(workdir: Path) -> None:
    """Both processes hold a workdir, and both are refused one that is in use."""
    from data.errors import UsageError
    from hvp_jax.parallel.processes import barrier
    from hvp_jax.training.exclusive import exclusive

    with exclusive(workdir):
        assert (workdir / "lock.json").exists()
        barrier("both have seen it")
        refusal = ""
        try:
            with exclusive(workdir):
                pass
        except UsageError as error:
            refusal = str(error)
        assert refusal.startswith(f"{workdir} is in use by another run: process "), refusal
    barrier("it is released")
    assert not workdir.exists()


def replay_run(address: str, process: int, golden: Path, out: Path) -> None:
    """Replays a golden run in float64 by each kind; process 0 writes the curves to `out`."""
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    from hvp_jax.parallel.partitioner import Partitioner
    from hvp_jax.parallel.processes import barrier, is_primary
    from hvp_jax.parity.golden import load_golden
    from hvp_jax.parity.runs import golden_run, replay

    assert (jax.local_device_count(), jax.device_count()) == (4, 8)
    run = golden_run.open_run(golden, *load_golden(golden))
    results = {}
    for name, arguments in PARTITIONERS.items():
        computed = replay.replay(run, "float64", Partitioner(*arguments))
        results |= {f"{name}/{key}": value for key, value in computed.items()}
    if is_primary():
        np.savez(out, **results)
    barrier("the results are written")


class ArrayFrames(dict):
    """A frame source: the frames of each clip by its id."""


def scores(partitioner) -> np.ndarray:
    """Scores of five captions and clips of noise, with the initial weights of `steps`."""
    from configs.base import get_config
    from data.records import Clip
    from hvp_jax.evaluation import scorer
    from tests.helpers.small import random_params
    from tests.helpers.train_steps import FRAMES, MODEL, WORDS, batch_of

    config = get_config()
    config.eval.batch_size, config.data.max_frames, config.data.max_words = 2, FRAMES, WORDS
    clips = [Clip(f"clip{i}", "", (f"{i} is a clip",), "test") for i in range(5)]
    side = MODEL.clip_config.image_size
    noise = np.random.default_rng(0).integers(0, 256, (5, FRAMES, side, side, 3), np.uint8)
    source = ArrayFrames((clip.clip_id, noise[i]) for i, clip in enumerate(clips))
    source.size, source.longest = side, FRAMES
    params = partitioner.replicate_params(
        partitioner.shard_state(random_params(MODEL, *batch_of(0)))
    )
    return scorer.evaluate_split(
        scorer.Scorer(MODEL, config, partitioner, num_frames=FRAMES), params, clips, source
    )[1]


def steps(partitioner, process: int) -> dict[str, np.ndarray]:
    """Losses and gradient norms of five steps, and the parameters after them."""
    from flax.traverse_util import flatten_dict

    from hvp_jax.parallel.processes import barrier
    from hvp_jax.training.step_spec import StepSpec
    from hvp_jax.training.train_state import create_train_state
    from hvp_jax.training.train_step import train_step
    from tests.helpers.small import random_params
    from tests.helpers.train_steps import BATCH, MODEL, OPTIMIZER, batch_of

    params = random_params(MODEL, *batch_of(0))
    state = partitioner.shard_state(create_train_state(params, OPTIMIZER))
    spec = StepSpec(model=MODEL, optimizer=OPTIMIZER, seed=3)
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    half = slice(process * BATCH // 2, (process + 1) * BATCH // 2)
    losses, norms = [], []
    for i in range(STEPS):
        batch = partitioner.shard_batch(
            jax.tree.map(lambda x: x[half], batch_of(i)), stop=process == 1
        )
        if i == 0:
            step.lower(state, batch).compile()
            barrier("compiled")
        state, metrics = step(state, batch)
        metrics = jax.device_get(metrics)
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
        assert metrics["stop"] == 1  # process 0 gets the stop flag of process 1
    # As when a checkpoint is written and restored.
    state = partitioner.from_global(partitioner.to_global(state))
    params = flatten_dict(jax.device_get(partitioner.replicate_params(state.params)), sep="/")
    return {"losses": losses, "norms": norms} | {f"params/{k}": v for k, v in params.items()}
