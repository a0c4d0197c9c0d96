"""`parity --source=PATH`: both towers of a PyTorch checkpoint and ours, on the same inputs.

A directory of Hugging Face's runs as its CLIPModel where `transformers` is installed, any
other checkpoint by PyTorch's layers (`hvp_jax/parity/torch_clip.py`). The error of an array is its
greatest absolute difference over the greatest magnitude in PyTorch's.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import UsageError
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.parity.compare import compare_arrays, table
from hvp_jax.weights import formats, param_mapping, torch_params
from hvp_jax.weights.formats import TorchCheckpoint

TOLERANCE = {"float32": {"forward": 1e-5}, "float64": {"forward": 1e-6}}
FRAMES, TEXTS, WORDS = 2, 3, 12


def random_inputs(source: TorchCheckpoint) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels [2, S, S, 3] and ids [3, W] that begin and end as captions do."""
    sizes, rng = source.clip_config, np.random.default_rng(0)
    pixels = rng.standard_normal((FRAMES, sizes.image_size, sizes.image_size, 3))
    length = min(WORDS, sizes.context_length)
    ids = rng.integers(1, sizes.vocab_size - 2, (TEXTS, length))
    ids[:, 0], ids[:, -1] = sizes.vocab_size - 2, sizes.vocab_size - 1
    return pixels, ids


def jax_arrays(
    source: TorchCheckpoint, params: dict, pixels: np.ndarray, ids: np.ndarray, dtype: jnp.dtype
) -> dict[str, np.ndarray]:
    """Hidden states of every layer of both towers, and features, through the model's own code."""
    sizes = source.clip_config
    model = HVPNet(sizes, (sizes.vision_layers,), dtype=dtype)
    clip = jax.tree.map(lambda x: jnp.asarray(x, dtype), params["clip"])

    def towers(module: HVPNet, pixels: jax.Array, ids: jax.Array):
        return module.clip.visual(pixels), module.clip.text(ids, jnp.ones(ids.shape, bool))

    def run(clip, pixels, ids):
        return model.apply(
            {"params": {"clip": clip}}, pixels, ids, method=towers, mutable=["intermediates"]
        )

    (image, (_, sentence)), kept = jax.jit(run)(
        clip, jnp.asarray(pixels, dtype), jnp.asarray(ids, jnp.int32)
    )
    kept = kept["intermediates"]["clip"]
    found = {
        f"{name}/layer{i + 1}": x
        for name, tower in (("image", "visual"), ("text", "text"))
        for i, x in enumerate(kept[tower]["tower"]["blocks"]["hidden"][0])
    }
    found |= {"image/features": image[-1, :, 0], "text/features": sentence}
    return {name: np.asarray(x) for name, x in found.items()}


def torch_arrays(
    source: TorchCheckpoint, pixels: np.ndarray, ids: np.ndarray, precision: str
) -> tuple[str, dict[str, np.ndarray]]:
    """What ran, and the same arrays by PyTorch."""
    try:
        import torch
    except ImportError:
        raise UsageError(
            "parity --source runs the checkpoint in PyTorch; install it (requirements-torch.txt)"
        ) from None
    dtype = getattr(torch, precision)
    images = torch.tensor(np.moveaxis(pixels, 3, 1), dtype=dtype)
    texts = torch.tensor(ids)
    if source.format == "huggingface" and source.path.is_dir():
        try:
            import transformers
        except ImportError:
            pass
        else:
            model = transformers.CLIPModel.from_pretrained(source.path, local_files_only=True)
            found = _of_transformers(model.to(dtype).eval(), images, texts)
            return f"transformers {transformers.__version__}", found
    from hvp_jax.parity import torch_clip

    found, by = source.tensors, f"PyTorch {torch.__version__}"
    if source.format == "huggingface":
        found = torch_params.to_torch(
            torch_params.from_torch(found, source.scheme), param_mapping.NamingScheme(head=False)
        )
        by += ", its tensors named by our table, for `transformers` is not installed"
    tensors = {
        name.removeprefix("clip.").removeprefix("text."): torch.tensor(found[name], dtype=dtype)
        for name in found
        if name.startswith("clip.") or source.format != "hvpnet"
    }
    with torch.no_grad():
        hidden = torch_clip.image(tensors, source.clip_config, images)
        hidden |= torch_clip.text(tensors, source.clip_config, texts)
    return by, {name: x.numpy() for name, x in hidden.items()}


def _of_transformers(model, images, texts) -> dict[str, np.ndarray]:
    import torch

    with torch.no_grad():
        vision = model.vision_model(images, output_hidden_states=True)
        text = model.text_model(texts, output_hidden_states=True)
        found = {
            f"{name}/layer{i}": x
            for name, output in (("image", vision), ("text", text))
            for i, x in enumerate(output.hidden_states)
            if i  # the first is the embedding
        }
        found["image/features"] = model.visual_projection(vision.pooler_output)
        found["text/features"] = model.text_projection(text.pooler_output)
        return {name: x.numpy() for name, x in found.items()}


def compare_checkpoint(path: Path, format: str, precision: str) -> dict:
    """Compares layer by layer and returns the table; `ok` is false if one is off."""
    source = formats.open_checkpoint(path, format)
    pixels, ids = random_inputs(source)
    by, golden = torch_arrays(source, pixels, ids, precision)
    source = formats.open_checkpoint(path, format)  # its tensors are let go as they are read
    params = torch_params.from_torch(source.tensors, source.scheme)
    found = jax_arrays(source, params, pixels, ids, jnp.dtype(precision))
    rows = [
        compare_arrays(name, array, found.get(name), TOLERANCE[precision])
        for name, array in golden.items()
    ]
    failed = [row["name"] for row in rows if not row["ok"]]
    return {
        "ok": not failed,
        "source": str(path),
        "format": source.format,
        "against": by,
        "precision": precision,
        "compared": len(rows),
        "failed": failed,
        "arrays": rows,
        "text": f"against {by}\n{table(rows, precision)}",
    }
