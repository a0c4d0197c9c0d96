"""What a model computes of a clip on the way to its features."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from data.batches.batch import VideoBatch
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.similarity import VideoFeatures

Array = np.ndarray | jax.Array


class Observed(NamedTuple):
    """Of one clip. A field that the model does not compute is None."""

    features: VideoFeatures  # of one clip
    distilled: Array | None  # [taps, m, d]
    raw_patch_weights: Array | None  # [taps, m], of the network
    frames: Array | None  # [taps, t, d], after what aggregates them
    raw_frame_weights: Array | None  # [taps, t]
    stages: list[dict[str, Array]]  # `clusters` and `scores` of each, [taps, n]


def observer(model: HVPNet) -> Callable[[Any, VideoBatch], Observed]:
    """A compiled function of the parameters and a batch of one clip."""
    model = model.clone(remat="none", learning_layers=None)

    def is_aggregation(module: Any, method: str) -> bool:
        return module.name == "frame_aggregation" and method == "__call__"

    @jax.jit
    def observe(params, batch: VideoBatch):
        features, state = model.apply(
            {"params": params},
            *batch,
            method="encode_video",
            mutable=["intermediates"],
            capture_intermediates=is_aggregation,
        )
        seen: dict[str, Any] = state.get("intermediates", {})

        def first(name: str, tree: dict[str, Any] = seen) -> Any:
            return tree[name][0] if name in tree else None

        aggregated = first("__call__", seen.get("frame_aggregation", {}))
        distill = seen.get("distill", {})
        stages = [distill[f"stage_{i}"] for i in range(len(distill))]
        per_tap = (first("distilled"), first("patch_weights"), first("frames"))
        distilled, patch_weights, frames = (None if x is None else x[:, 0] for x in per_tap)
        frame_weights = first("frame_weights")
        return Observed(
            features=features,
            distilled=distilled,
            raw_patch_weights=patch_weights,
            frames=frames if aggregated is None else aggregated,
            raw_frame_weights=None if frame_weights is None else frame_weights[:, 0],
            stages=[
                {name: stage[name][0] for name in ("clusters", "scores") if name in stage}
                for stage in stages
            ],
        )

    return observe
