"""Compares both towers of a PyTorch checkpoint with the model's, on the same inputs.

A Hugging Face directory runs as its CLIPModel if `transformers` is installed, any other
checkpoint by `hvp_jax/parity/torch_clip.py`. The error of an array is its greatest absolute
difference over the greatest magnitude in PyTorch's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.parity.compare import compare_arrays
from hvp_jax.parity.report import CheckpointReport
from hvp_jax.weights import formats, param_mapping, torch_params
from hvp_jax.weights.formats import TorchCheckpoint

TOLERANCE = {"float32": {"forward": 1e-5}, "float64": {"forward": 1e-6}}
FRAMES, TEXTS, WORDS = 2, 3, 12


def random_inputs(source: TorchCheckpoint) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels [2, S, S, 3], and ids [3, W] between a start and an end token."""
    config, rng = source.clip_config, np.random.default_rng(0)
    pixels = rng.standard_normal((FRAMES, config.image_size, config.image_size, 3))
    length = min(WORDS, config.context_length)
    ids = rng.integers(1, config.vocab_size - 2, (TEXTS, length))
    ids[:, 0], ids[:, -1] = config.vocab_size - 2, config.vocab_size - 1
    return pixels, ids


def jax_arrays(
    source: TorchCheckpoint,
    params: dict[str, Any],
    pixels: np.ndarray,
    ids: np.ndarray,
    *,
    dtype: jnp.dtype,
) -> dict[str, np.ndarray]:
    """Hidden states of every layer of both towers, and features, by the model's own code."""
    model = HVPNet(source.clip_config, taps=(source.clip_config.vision_layers,), dtype=dtype)
    clip = jax.tree.map(lambda x: jnp.asarray(x, dtype), params["clip"])

    def towers(module: HVPNet, pixels: jax.Array, ids: jax.Array):
        pixels = pixels.reshape(*pixels.shape[:2], -1)  # width and channels as one axis
        image = module.clip.visual(pixels, jnp.ones(len(pixels), bool))
        return image, module.clip.text(ids, jnp.ones(ids.shape, bool))

    def run(clip, pixels, ids):
        return model.apply(
            {"params": {"clip": clip}}, pixels, ids, method=towers, mutable=["intermediates"]
        )

    (image, (_, sentence)), sown = jax.jit(run)(
        clip, jnp.asarray(pixels, dtype), jnp.asarray(ids, jnp.int32)
    )
    arrays = {
        f"{name}/layer{i + 1}": x
        for name, tower in (("image", "visual"), ("text", "text"))
        for i, x in enumerate(sown["intermediates"]["clip"][tower]["tower"]["blocks"]["hidden"][0])
    }
    arrays |= {"image/features": image[-1, :, 0], "text/features": sentence}
    return {name: np.asarray(x) for name, x in arrays.items()}


def torch_arrays(
    source: TorchCheckpoint, pixels: np.ndarray, ids: np.ndarray, precision: str
) -> tuple[str, dict[str, np.ndarray]]:
    """The library that ran the checkpoint, and the same arrays computed by it."""
    try:
        import torch
    except ImportError:
        raise UsageError(
            "parity --source runs the checkpoint in PyTorch; install it (requirements-torch.txt)"
        ) from None
    dtype = getattr(torch, precision)
    images = torch.tensor(np.moveaxis(pixels, 3, 1), dtype=dtype)
    texts = torch.tensor(ids)
    library = f"PyTorch {torch.__version__}"
    if source.format == "huggingface":
        if source.path.is_dir():
            try:
                import transformers
            except ImportError:
                pass
            else:
                # Shapes were checked: only a `logit_scale` of shape [1], which no tower reads, can
                # differ.
                model = transformers.CLIPModel.from_pretrained(
                    source.path, local_files_only=True, ignore_mismatched_sizes=True
                )
                arrays = _transformers_arrays(model.to(dtype).eval(), images, texts)
                return f"transformers {transformers.__version__}", arrays
        reason = "`transformers` is not installed" if source.path.is_dir() else "it is one file"
        library += f", with tensors renamed as in param_mapping.py, because {reason}"
        params = torch_params.from_torch(source.tensors, source.scheme)
        tensors = torch_params.to_torch(params, param_mapping.NamingScheme(head=False))
        state = {name: torch.tensor(x, dtype=dtype) for name, x in tensors.items()}
    else:
        state = {
            f"clip.{name.removeprefix('clip.').removeprefix('text.')}": torch.tensor(
                source.tensors[name], dtype=dtype
            )
            for name in source.tensors
            if name.startswith("clip.") or source.format != "hvpnet"
        }
    with torch.no_grad():
        return library, _torch_clip_arrays(source, state, images, texts)


def _torch_clip_arrays(source: TorchCheckpoint, state, images, texts) -> dict[str, np.ndarray]:
    from hvp_jax.parity import torch_clip

    config = source.clip_config
    layers = range(1, config.vision_layers + 1)
    image_hidden, tokens = torch_clip.encode_image(images, state, config, layers)
    layers = range(1, config.text_layers + 1)
    text_hidden, _, sentence = torch_clip.encode_text(texts, state, config, layers)
    arrays = {f"image/layer{i}": x for i, x in enumerate(image_hidden, 1)}
    arrays["image/features"] = tokens[-1, :, 0]
    arrays |= {f"text/layer{i}": x for i, x in enumerate(text_hidden, 1)}
    arrays["text/features"] = sentence
    return {name: x.numpy() for name, x in arrays.items()}


def _transformers_arrays(model, images, texts) -> dict[str, np.ndarray]:
    import torch

    with torch.no_grad():
        vision = model.vision_model(images, output_hidden_states=True)
        text = model.text_model(texts, output_hidden_states=True)
        arrays = {
            f"{name}/layer{i}": x
            for name, output in (("image", vision), ("text", text))
            for i, x in enumerate(output.hidden_states)
            if i  # the first is the embedding
        }
        arrays["image/features"] = model.visual_projection(vision.pooler_output)
        arrays["text/features"] = model.text_projection(text.pooler_output)
        return {name: x.numpy() for name, x in arrays.items()}


def compare_checkpoint(path: Path, format: str, precision: str) -> CheckpointReport:
    """Compares the towers layer by layer."""
    source = formats.open_checkpoint(path, format)
    pixels, ids = random_inputs(source)
    library, golden = torch_arrays(source, pixels, ids, precision)
    source = formats.open_checkpoint(path, format)  # each tensor can be read only once
    params = torch_params.from_torch(source.tensors, source.scheme)
    computed = jax_arrays(source, params, pixels, ids, dtype=jnp.dtype(precision))
    rows = [
        compare_arrays(name, array, computed.get(name), TOLERANCE[precision])
        for name, array in golden.items()
    ]
    failed = [row.name for row in rows if not row.ok]
    return CheckpointReport(
        ok=not failed,
        source=str(path),
        format=source.format,
        against=library,
        precision=precision,
        compared=len(rows),
        failed=failed,
        arrays=rows,
    )
