"""Ours under the names of a golden file, through the code that training and eval run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from data.batches.batch import Batch, TextBatch, VideoBatch
from data.errors import DataError
from hvp_jax.evaluation import metrics, scorer
from hvp_jax.evaluation.scorer import score_matrix
from hvp_jax.models import similarity
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.losses import contrastive
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import optimizer, step_spec, train_state
from hvp_jax.training.train_step import loss_fn, train_step
from hvp_jax.weights import torch_params


def compute_arrays(
    params: dict,
    sizes: ClipConfig,
    stages: int,
    taps: tuple[int, ...],
    batches: dict[str, dict],
    about: dict,
    wanted: set[str],
    dtype: jnp.dtype,
) -> dict[str, np.ndarray]:
    """Everything among `wanted` that a golden file can hold; the model is the reference's."""
    model = HVPNet(
        sizes, taps, stages=stages, normalize="none", mask_padding=False, remat="none", dtype=dtype
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    batch = {group: _batch(arrays, dtype) for group, arrays in batches.items()}
    ours = _forward(model, params, batch["input"])
    spec = step_spec.StepSpec(model=model, optimizer=_optimizer(about), noise=False, paired=True)
    if any(name.startswith("grad/") for name in wanted):
        loss = functools.partial(loss_fn, spec=spec, axis=None)
        grads = jax.jit(jax.grad(loss, has_aux=True))(params, 0, batch["input"])[0]
        ours |= {f"grad/{name}": x for name, x in torch_params.to_torch(grads).items()}
    if wanted & {"loss/curve", "grad_norm"} or any(n.startswith("after/") for n in wanted):
        ours |= _train(params, batch["input"], spec, about)
    if "eval" in batch:
        ours |= _evaluate(model, params, batch["eval"])
    return ours


def _batch(arrays: dict, dtype: jnp.dtype) -> Batch:
    video = np.moveaxis(arrays["video"], 2, -1)  # [B, T, 3, H, W] -> [B, T, H, W, 3]
    return Batch(
        text_ids=jnp.asarray(arrays["text_ids"]),
        text_mask=jnp.asarray(arrays["text_mask"], bool),
        video=jnp.asarray(video, dtype),
        video_mask=jnp.asarray(arrays["video_mask"], bool),
    )


def _optimizer(about: dict):
    if "optimizer" not in about:
        return None
    o = about["optimizer"]
    if "steps" not in o:
        raise DataError("the golden file's JSON: `optimizer` has no 'steps'")
    try:
        return optimizer.make_optimizer(
            o["lr"],
            o["lr"] * o["coef_lr"],
            o["t_total"],
            warmup_fraction=o["warmup"],
            weight_decay=o["weight_decay"],
            b1=o["b1"],
            b2=o["b2"],
            epsilon=o["eps"],
        )
    except KeyError as error:
        raise DataError(f"the golden file's JSON: `optimizer` has no {error}") from None


def _forward(model: HVPNet, params: dict, batch: Batch) -> dict[str, np.ndarray]:
    @jax.jit
    def forward(params, batch):
        (text, video, log_scale), kept = model.apply(
            {"params": params}, *batch, mutable=["intermediates"]
        )
        scores = similarity.scores(text, video, text.word_weights)
        return scores, contrastive(scores, log_scale), kept["intermediates"]

    scores, (loss, parts), kept = forward(params, batch)
    ours = {
        "features/sentence": kept["sentence"][0],
        "features/word": kept["words"][0],
        "weights/word": kept["word_weights"][0],
        "sim": scores.sum((0, 1)),
        "loss": loss,
        "loss/total": loss,
    }
    for t, term in enumerate(similarity.TERMS):
        ours[f"loss/{term}"] = sum(x for name, x in parts.items() if name.startswith(term))
        ours |= {f"sim/{term}/layer{i}": x for i, x in enumerate(scores[t])}
    taps = len(model.taps)
    for i in range(taps):
        ours[f"features/frame/layer{i}"] = kept["frames"][0][i]
        ours[f"features/patch/layer{i}"] = kept["patches"][0][i]
        ours[f"features/patch/layer{i}/every5th"] = kept["patches"][0][i]
        ours[f"mpp/layer{i}/out"] = kept["distilled"][0][i]
        ours[f"mpp/layer{i}/out_norm"] = jnp.linalg.norm(kept["distilled"][0][i], axis=-1)
        ours[f"weights/patch/layer{i}"] = kept["patch_weights"][0][i]
        ours[f"weights/frame/layer{i}"] = kept["frame_weights"][0][i]
        for j in range(model.stages):
            stage = {name: x[0] for name, x in kept["distill"][f"stage_{j}"].items()}
            for name, x in (
                ("tokens", stage["tokens"]),
                ("score", stage["scores"][..., None]),
                ("cluster", stage["clusters"]),
                ("merged", stage["merged"]),
            ):
                # The taps came stacked on the batch axis.
                ours[f"mpp/layer{i}/stage{j}/{name}"] = x.reshape(taps, -1, *x.shape[1:])[i]
    return ours


def _train(
    params: dict, batch: Batch, spec: step_spec.StepSpec, about: dict
) -> dict[str, np.ndarray]:
    """The optimiser's steps on the one batch, through the compiled step of training."""
    if spec.optimizer is None:
        raise DataError("the golden file holds arrays of training, but its JSON no `optimizer`")
    partitioner = Partitioner("pmap", devices=jax.devices()[:1])
    state = partitioner.shard_state(train_state.create_train_state(params, spec.optimizer))
    laid = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    curve, norms = [], []
    for _ in range(about["optimizer"]["steps"]):
        state, figures = laid(state, partitioner.shard_batch(batch))
        curve.append(float(figures["loss"]))
        norms.append(float(figures["grad_norm"]))
    after = {f"after/{name}": x for name, x in torch_params.to_torch(state.params).items()}
    return {"loss/curve": np.array(curve), "grad_norm": norms[0], **after}


def _evaluate(model: HVPNet, params: dict, batch: Batch) -> dict[str, np.ndarray]:
    texts, clips = TextBatch(*batch[:2]), VideoBatch(*batch[2:])
    text = jax.jit(functools.partial(scorer.encode_text, model=model))(params, texts)
    video = jax.jit(functools.partial(scorer.encode_video, model=model))(params, (clips, None))
    matrix = score_matrix(text, video, text.word_weights, text_block=4, clip_block=3)
    target = np.arange(len(matrix))
    ours = {"eval/similarity": matrix}
    names = {
        "R@1": "R1",
        "R@5": "R5",
        "R@10": "R10",
        "R@50": "R50",
        "MdR": "MedianR",
        "MnR": "MeanR",
    }
    for direction, figures in (
        ("metrics_t2v", metrics.text_to_video(matrix, target)),
        ("metrics_v2t", metrics.video_to_text(matrix, target)),
    ):
        ours |= {f"{direction}/{names[k]}": np.asarray(v) for k, v in figures.items()}
    return ours
