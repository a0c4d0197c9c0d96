"""The model's arrays under the names of a golden file, by the code of training and eval."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from data.batches.batch import Batch, TextBatch, VideoBatch
from data.errors import DataError
from hvp_jax.evaluation import metrics, scorer
from hvp_jax.evaluation.scorer import score_matrix
from hvp_jax.models import similarity
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.losses import contrastive
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import step_spec, train_state
from hvp_jax.training.optimization.optimizer import Optimizer, make_optimizer
from hvp_jax.training.train_step import loss_fn, train_step
from hvp_jax.weights import torch_params


def compute_arrays(
    model: HVPNet,
    params: dict[str, Any],
    batches: dict[str, dict[str, np.ndarray]],
    metadata: dict[str, Any],
    *,
    wanted: set[str],
) -> dict[str, np.ndarray]:
    """Everything that a golden file can hold; gradients and training only if `wanted`."""
    dtype = model.dtype
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    batch = {group: _batch(arrays, dtype) for group, arrays in batches.items()}
    computed = _forward(model, params, batch["input"])
    optimizer = optimizer_from_metadata(metadata) if "optimizer" in metadata else None
    spec = step_spec.StepSpec(model=model, optimizer=optimizer, noise=False, paired=True)
    if any(name.startswith("grad/") for name in wanted):
        loss = functools.partial(loss_fn, spec=spec, axis=None)
        grads = jax.jit(jax.grad(loss, has_aux=True))(params, 0, batch["input"])[0]
        computed |= {f"grad/{name}": x for name, x in torch_params.to_torch(grads).items()}
    if wanted & {"loss/curve", "grad_norm"} or any(n.startswith("after/") for n in wanted):
        computed |= _train(params, batch["input"], spec, metadata)
    if "eval" in batch:
        computed |= _evaluate(model, params, batch["eval"])
    return computed


def _batch(arrays: dict[str, np.ndarray], dtype: DTypeLike) -> Batch:
    video = np.moveaxis(arrays["video"], 2, -1)  # [B, T, 3, H, W] -> [B, T, H, W, 3]
    return Batch(
        text_ids=arrays["text_ids"],
        text_mask=arrays["text_mask"].astype(bool),
        video=video.astype(dtype),
        video_mask=arrays["video_mask"].astype(bool),
    )


def optimizer_from_metadata(metadata: dict[str, Any], freeze_patches: bool = True) -> Optimizer:
    """The optimizer with the constants of a golden file's JSON. Raises DataError without them."""
    o = metadata["optimizer"]
    try:
        return make_optimizer(
            o["lr"],
            o["lr"] * o["coef_lr"],
            o["t_total"],
            warmup_fraction=o["warmup"],
            weight_decay=o["weight_decay"],
            max_grad_norm=o.get("max_grad_norm", 1.0),
            b1=o["b1"],
            b2=o["b2"],
            epsilon=o["eps"],
            freeze_patches=freeze_patches,
        )
    except KeyError as error:
        raise DataError(f"the golden file's JSON: `optimizer` has no {error}") from None


def _forward(model: HVPNet, params: dict[str, Any], batch: Batch) -> dict[str, Any]:
    @jax.jit
    def forward(params, batch):
        (text, video, log_scale), sown = model.apply(
            {"params": params}, *batch, mutable=["intermediates"]
        )
        scores = similarity.scores(text, video, text.word_weights)
        return scores, contrastive(scores, log_scale), sown["intermediates"]

    scores, (loss, parts), sown = forward(params, batch)
    computed = {
        "features/sentence": sown["sentence"][0],
        "features/word": sown["words"][0],
        "weights/word": sown["word_weights"][0],
        "sim": scores.sum((0, 1)),
        "loss": loss,
        "loss/total": loss,
    }
    for t, term in enumerate(model.terms):
        computed[f"loss/{term}"] = sum(x for name, x in parts.items() if name.startswith(term))
        computed |= {f"sim/{term}/layer{i}": x for i, x in enumerate(scores[t])}
    taps = len(model.taps)
    for i in range(taps):
        computed[f"features/frame/layer{i}"] = sown["frames"][0][i]
        computed[f"features/patch/layer{i}"] = sown["patches"][0][i]
        computed[f"features/patch/layer{i}/every5th"] = sown["patches"][0][i]
        computed[f"mpp/layer{i}/out"] = sown["distilled"][0][i]
        computed[f"mpp/layer{i}/out_norm"] = jnp.linalg.norm(sown["distilled"][0][i], axis=-1)
        computed[f"weights/patch/layer{i}"] = sown["patch_weights"][0][i]
        computed[f"weights/frame/layer{i}"] = sown["frame_weights"][0][i]
        for j in range(model.stages):
            stage = {name: x[0] for name, x in sown["distill"][f"stage_{j}"].items()}
            for name, x in (
                ("tokens", stage["tokens"]),
                ("score", stage["scores"][..., None]),
                ("cluster", stage["clusters"]),
                ("merged", stage["merged"]),
            ):
                # The batch axis holds the taps and the batch: [L B, ...].
                computed[f"mpp/layer{i}/stage{j}/{name}"] = x.reshape(taps, -1, *x.shape[1:])[i]
    return computed


def _train(
    params: dict[str, Any], batch: Batch, spec: step_spec.StepSpec, metadata: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Optimizer steps on the one batch, through the compiled training step."""
    if spec.optimizer is None:
        raise DataError("the golden file holds arrays of training, but its JSON no `optimizer`")
    if "steps" not in metadata["optimizer"]:
        raise DataError("the golden file's JSON: `optimizer` has no 'steps'")
    partitioner = Partitioner("pmap", devices=jax.devices()[:1])
    state = partitioner.shard_state(train_state.create_train_state(params, spec.optimizer))
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    losses, norms = [], []
    for _ in range(metadata["optimizer"]["steps"]):
        state, step_metrics = step(state, partitioner.shard_batch(batch))
        losses.append(float(step_metrics["loss"]))
        norms.append(float(step_metrics["grad_norm"]))
    after = {f"after/{name}": x for name, x in torch_params.to_torch(state.params).items()}
    return {"loss/curve": np.array(losses), "grad_norm": np.asarray(norms[0]), **after}


GOLDEN_METRICS = {  # name here: name in a golden file
    "R@1": "R1",
    "R@5": "R5",
    "R@10": "R10",
    "R@50": "R50",
    "MdR": "MedianR",
    "MnR": "MeanR",
}


def _evaluate(model: HVPNet, params: dict[str, Any], batch: Batch) -> dict[str, np.ndarray]:
    texts = TextBatch(batch.text_ids, batch.text_mask)
    clips = VideoBatch(batch.video, batch.video_mask)
    text = jax.jit(functools.partial(scorer.encode_text, model=model))(params, texts)
    video = jax.jit(functools.partial(scorer.encode_video, model=model))(params, (clips, None))
    matrix = score_matrix(text, video, text.word_weights, text_block=4, clip_block=3)
    return {"eval/similarity": matrix, **retrieval_metrics(matrix, np.arange(len(matrix)))}


def retrieval_metrics(
    matrix: Float[np.ndarray, "texts clips"], clip_of_text: Int[np.ndarray, " texts"], suffix=""
) -> dict[str, np.ndarray]:
    """Metrics as the JSON of a golden file has them, named `metrics{suffix}_t2v/R1` and so on."""
    computed: dict[str, np.ndarray] = {}
    for direction, retrieval in (
        ("t2v", metrics.text_to_video(matrix, clip_of_text)),
        ("v2t", metrics.video_to_text(matrix, clip_of_text)),
    ):
        prefix = f"metrics{suffix}_{direction}"
        computed |= {f"{prefix}/{GOLDEN_METRICS[k]}": np.asarray(v) for k, v in retrieval.items()}
    return computed
