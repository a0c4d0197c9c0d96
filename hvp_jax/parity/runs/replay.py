"""Replays a golden run by the code that trains: its step, optimizer, schedule and scoring."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Float
from tqdm import tqdm

from hvp_jax.evaluation import scorer
from hvp_jax.models.clip import TextTransformer, VisionTransformer
from hvp_jax.models.clip_config import PAPER_TERMS
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.processes import barrier, is_primary, process_index_and_count
from hvp_jax.parity.model_arrays import optimizer_from_metadata, retrieval_metrics
from hvp_jax.parity.runs.golden_run import GoldenRun
from hvp_jax.training.step_spec import StepSpec
from hvp_jax.training.train_state import TrainState, create_train_state
from hvp_jax.training.train_step import train_step
from hvp_jax.weights import torch_params

EVAL_BATCH = 16  # captions, and clips, encoded at a time
METRICS = {  # of the step: its name in a golden file
    "loss": "loss/curve",
    "grad_norm": "grad_norm",
    "lr_factor": "lr_factor",
    "log_scale": "logit_scale",
}


def spec_of_run(run: GoldenRun, dtype: DTypeLike) -> StepSpec:
    """The training step of a run, in the form of the original."""
    model = HVPNet(
        run.clip_config,
        run.taps,
        run.stages,
        normalize="none",
        mask_padding=False,
        dtype=jnp.dtype(dtype),
        freeze_patches=run.freezes_patches,
    )
    optimizer = optimizer_from_metadata(run.metadata, run.freezes_patches)
    return StepSpec(model=model, optimizer=optimizer, noise=False, paired=True)


def replay(run: GoldenRun, dtype: DTypeLike, partitioner: Partitioner) -> dict[str, np.ndarray]:
    """Trains and evaluates; returns arrays with the names of a golden file.

    Each process feeds its part of every batch; all get the results. Float64 must be enabled for it.
    """
    spec = spec_of_run(run, dtype)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), run.params())
    assert spec.optimizer is not None
    state = partitioner.shard_state(create_train_state(params, spec.optimizer))
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    index, count = process_index_and_count()
    size = run.batch_size // count
    part = slice(index * size, (index + 1) * size)
    rows: list[dict[str, float]] = []
    computed: dict[str, np.ndarray] = {}
    for i in tqdm(range(run.steps), "replaying", unit="step", disable=not is_primary()):
        batch = partitioner.shard_batch(run.batch(i, part))
        if i == 0 and count > 1:
            step.lower(state, batch).compile()
            barrier("every process has compiled")
        state, metrics = step(state, batch)
        rows.append(_row(jax.device_get(metrics)))
        if i + 1 in run.snapshots:
            tensors = torch_params.to_torch(_host_params(partitioner, state))
            names = set(run.snapshots[i + 1]) & set(tensors)
            computed |= {f"after{i + 1}/{name}": tensors[name] for name in names}
    computed |= {name: np.array([row[name] for row in rows]) for name in rows[0]}
    computed["loss/curve_perturbed"] = computed["loss/curve"]
    return computed | _evaluate(run, spec.model, _host_params(partitioner, state))


def _row(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of a step under the names of a golden file."""
    row = {name: metrics[metric].item() for metric, name in METRICS.items()}
    for term in PAPER_TERMS:
        taps = (x.item() for name, x in metrics.items() if name.startswith(f"loss/{term}/"))
        row[f"loss/{term}"] = sum(taps)
    return row


def _host_params(partitioner: Partitioner, state: TrainState) -> optax.Params:
    return jax.device_get(partitioner.replicate_params(state.params))


def _evaluate(run: GoldenRun, model: HVPNet, params: optax.Params) -> dict[str, np.ndarray]:
    """Scores of the test split and their retrieval metrics."""
    computed = {}
    for name, suffix, intercept in (
        ("eval/similarity", "", None),
        ("eval/similarity_half", "_half", _round_to_float16),
    ):
        if name in run.expected or f"metrics{suffix}_t2v" in run.metadata:
            matrix = computed[name] = _scores(run, model, params, intercept)
            if np.isfinite(matrix).all():  # else there are no ranks, and the scores fail
                computed |= retrieval_metrics(matrix, run.test_targets(), suffix)
    return computed


def _scores(
    run: GoldenRun, model: HVPNet, params: optax.Params, intercept: Callable | None
) -> Float[np.ndarray, "texts clips"]:
    def encode(function, read, rows):
        @jax.jit
        def compiled(params, batch):
            if intercept is None:
                return function(params, batch, model=model)
            with nn.intercept_methods(intercept):
                return function(params, batch, model=model)

        parts = []
        for first in range(0, len(rows), EVAL_BATCH):
            batch = rows[first : first + EVAL_BATCH]
            # The last batch is padded with its last row, so that there is one shape to compile.
            padded = np.pad(batch, (0, EVAL_BATCH - len(batch)), mode="edge")
            parts.append(jax.device_get(compiled(params, read(padded))))
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(rows)], *parts)

    def encode_video(params, videos, model):
        return scorer.encode_video(params, (videos, None), model)

    text = encode(scorer.encode_text, run.texts, run.test_split("captions"))
    video = encode(encode_video, run.videos, run.test_split("clips"))
    _, first = np.unique(run.test_targets(), return_index=True)  # the caption paired with a clip
    return scorer.score_matrix(text, video, text.word_weights[first])


def _round_to_float16(next_function, args, kwargs, context):
    """Rounds the output of both towers to float16, as the original's evaluation stores it."""
    outputs = next_function(*args, **kwargs)
    if not isinstance(context.module, VisionTransformer | TextTransformer):
        return outputs

    def round_features(x: jax.Array) -> jax.Array:
        # PyTorch rounds float64 to float32 first, which can change the last bit.
        return x.astype(jnp.float32).astype(jnp.float16).astype(x.dtype)

    return jax.tree.map(round_features, outputs)
