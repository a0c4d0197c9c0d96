"""PyTorch <-> Flax names and layouts: one table of rules, read in both directions.

The PyTorch names are those of the original's checkpoints. `{i}` in a name is a
layer; where ours has no `{i}`, the layers are stacked along the first axis.
"""

import re
from collections.abc import Mapping

import numpy as np

from hvp_jax.errors import BadData
from hvp_jax.sizes import Sizes

BLOCK = [
    ("ln_1.weight", "norm_1/scale", "same"),
    ("ln_1.bias", "norm_1/bias", "same"),
    ("attn.in_proj_weight", "qkv/kernel", "linear"),
    ("attn.in_proj_bias", "qkv/bias", "same"),
    ("attn.out_proj.weight", "attention_out/kernel", "linear"),
    ("attn.out_proj.bias", "attention_out/bias", "same"),
    ("ln_2.weight", "norm_2/scale", "same"),
    ("ln_2.bias", "norm_2/bias", "same"),
    ("mlp.c_fc.weight", "mlp_in/kernel", "linear"),
    ("mlp.c_fc.bias", "mlp_in/bias", "same"),
    ("mlp.c_proj.weight", "mlp_out/kernel", "linear"),
    ("mlp.c_proj.bias", "mlp_out/bias", "same"),
]

STAGE = [
    ("pcm.conv.conv.weight", "conv/kernel", "conv1d"),
    ("pcm.norm.weight", "norm/scale", "same"),
    ("pcm.norm.bias", "norm/bias", "same"),
    ("pcm.score.weight", "score/kernel", "linear"),
    ("pcm.score.bias", "score/bias", "same"),
    ("att.norm1.weight", "attention_norm/scale", "same"),
    ("att.norm1.bias", "attention_norm/bias", "same"),
    ("att.attn.q.weight", "query/kernel", "linear"),
    ("att.attn.q.bias", "query/bias", "same"),
    ("att.attn.kv.weight", "key_value/kernel", "linear"),
    ("att.attn.kv.bias", "key_value/bias", "same"),
    ("att.attn.proj.weight", "attention_out/kernel", "linear"),
    ("att.attn.proj.bias", "attention_out/bias", "same"),
]

TOKEN_WEIGHTS = [
    (f"{torch}.{2 * layer}.{kind}", f"{ours}/dense_{layer}/{leaf}", how)
    for torch, ours in (
        ("p_feat_w", "patch_weight"),
        ("f_feat_w", "frame_weight"),
        ("w_feat_w", "word_weight"),
    )
    for layer in range(3)
    for kind, leaf, how in (("weight", "kernel", "linear"), ("bias", "bias", "same"))
]

# (PyTorch name, path here, layout)
RULES = [
    ("clip.logit_scale", "clip/logit_scale", "same"),
    ("clip.visual.conv1.weight", "clip/visual/patch_embedding", "patches"),
    ("clip.visual.class_embedding", "clip/visual/class_embedding", "same"),
    ("clip.visual.positional_embedding", "clip/visual/position_embedding", "same"),
    ("clip.visual.ln_pre.weight", "clip/visual/norm_pre/scale", "same"),
    ("clip.visual.ln_pre.bias", "clip/visual/norm_pre/bias", "same"),
    *(
        (f"clip.visual.transformer.resblocks.{{i}}.{a}", f"clip/visual/tower/blocks/{b}", how)
        for a, b, how in BLOCK
    ),
    ("clip.visual.ln_post.weight", "clip/visual/norm_post/scale", "same"),
    ("clip.visual.ln_post.bias", "clip/visual/norm_post/bias", "same"),
    ("clip.visual.proj", "clip/visual/projection", "same"),
    ("clip.token_embedding.weight", "clip/text/token_embedding", "same"),
    ("clip.positional_embedding", "clip/text/position_embedding", "same"),
    *(
        (f"clip.transformer.resblocks.{{i}}.{a}", f"clip/text/tower/blocks/{b}", how)
        for a, b, how in BLOCK
    ),
    ("clip.ln_final.weight", "clip/text/norm_final/scale", "same"),
    ("clip.ln_final.bias", "clip/text/norm_final/bias", "same"),
    ("clip.text_projection", "clip/text/projection", "same"),
    *(
        (f"PatchListProcessing.blocks.{{i}}.{a}", f"distill/stage_{{i}}/{b}", how)
        for a, b, how in STAGE
    ),
    *TOKEN_WEIGHTS,
]


def _to_ours(x: np.ndarray, how: str) -> np.ndarray:
    if how == "linear":  # [out, in] -> [in, out]
        return x.T
    if how == "conv1d":  # [out, in, kernel] -> [kernel, in, out]
        return x.transpose(2, 1, 0)
    if how == "patches":  # [width, 3, p, p] -> [p p 3, width]
        return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])
    return x


def _to_torch(x: np.ndarray, how: str) -> np.ndarray:
    if how == "linear":
        return x.T
    if how == "conv1d":
        return x.transpose(2, 1, 0)
    if how == "patches":
        side = round((x.shape[0] / 3) ** 0.5)
        return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    return x


def _layers(name: str, names: Mapping[str, object]) -> list[int]:
    """The layers of the stack that a rule's name is in, by any tensor of it: 0, 1, 2 ..."""
    stack = name.split("{i}")[0]
    pattern = re.compile(re.escape(stack) + r"(\d+)[./]")
    layers = sorted({int(m[1]) for m in map(pattern.match, names) if m})
    for expected, layer in enumerate(layers):
        if layer != expected:
            raise BadData(f"{stack}{expected}: a layer that is missing, of 0 to {layers[-1]}")
    return layers


def from_torch(state: Mapping[str, np.ndarray]) -> dict:
    """A state dict of the original -> our tree of parameters, strictly.

    Raises BadData that names the first tensor that is missing or not known.
    """
    flat: dict[str, np.ndarray] = {}
    used = set()
    for torch_name, path, how in RULES:
        layers = _layers(torch_name, state) if "{i}" in torch_name else [None]
        names = [torch_name if i is None else torch_name.replace("{i}", str(i)) for i in layers]
        for name in names:
            if name not in state:
                raise BadData(f"{name}: not among the {len(state)} tensors of the checkpoint")
        if not names:
            raise BadData(f"{torch_name}: not among the {len(state)} tensors of the checkpoint")
        used.update(names)
        arrays = [_to_ours(np.asarray(state[name]), how) for name in names]
        if "{i}" in path:
            flat.update({path.replace("{i}", str(i)): x for i, x in enumerate(arrays)})
        elif "{i}" in torch_name:
            flat[path] = np.stack(arrays)
        else:
            (flat[path],) = arrays
    unknown = sorted(set(state) - used)
    if unknown:
        raise BadData(f"{unknown[0]}: a tensor that the original does not have")
    return unflatten(flat)


def to_torch(params: Mapping) -> dict[str, np.ndarray]:
    """Our tree (of parameters, gradients or moments) -> the original's names and layouts."""
    flat = {path: np.asarray(x) for path, x in flatten(params).items()}
    state = {}
    for torch_name, path, how in RULES:
        if "{i}" in path:
            for i in _layers(path, flat):
                state[torch_name.replace("{i}", str(i))] = _to_torch(
                    flat[path.replace("{i}", str(i))], how
                )
        elif "{i}" in torch_name:
            for i, x in enumerate(flat[path]):
                state[torch_name.replace("{i}", str(i))] = _to_torch(x, how)
        else:
            state[torch_name] = _to_torch(flat[path], how)
    return state


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """Nested dicts -> {"a/b/c": leaf}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, object]) -> dict:
    """{"a/b/c": leaf} -> nested dicts."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def sizes_of(params: Mapping) -> tuple[Sizes, int]:
    """A tree of parameters -> the model's sizes and its number of distillation stages."""
    visual, text = params["clip"]["visual"], params["clip"]["text"]
    patch_size = round((visual["patch_embedding"].shape[0] / 3) ** 0.5)
    side = round((visual["position_embedding"].shape[0] - 1) ** 0.5)
    sizes = Sizes(
        image_size=side * patch_size,
        patch_size=patch_size,
        vision_width=visual["projection"].shape[0],
        vision_layers=visual["tower"]["blocks"]["norm_1"]["scale"].shape[0],
        text_width=text["projection"].shape[0],
        text_layers=text["tower"]["blocks"]["norm_1"]["scale"].shape[0],
        embed_dim=visual["projection"].shape[1],
        context_length=text["position_embedding"].shape[0],
        vocabulary=text["token_embedding"].shape[0],
    )
    return sizes, len(params["distill"])
