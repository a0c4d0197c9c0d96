"""PyTorch <-> Flax names and layouts: one table of rules, read in both directions.

Each rule gives a parameter's path here, and its name in a checkpoint of the original and of
Hugging Face. `{i}` in a name is the index of a layer; where the path has no `{i}`, the layers
are stacked along the first axis. `{qkv}` stands for three tensors, concatenated here.

Plain Python: the command line imports it before JAX.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

FORMATS = ("openai", "open_clip", "huggingface", "hvpnet")  # of a checkpoint; see formats.py


class ParamRule(NamedTuple):
    path: str  # in the tree of parameters
    original: str  # name in the original's state dict
    layout: str  # of the tensor there; "same" as here, or one that torch_params.py converts
    huggingface: str | None = None  # None: Hugging Face's CLIP has no such tensor
    huggingface_layout: str | None = None  # None: the same as `layout`


def _block(module: str, original: str, huggingface: str) -> Iterator[ParamRule]:
    for path, name, hub_name, layout in (
        ("norm_1/scale", "ln_1.weight", "layer_norm1.weight", "same"),
        ("norm_1/bias", "ln_1.bias", "layer_norm1.bias", "same"),
        ("qkv/kernel", "attn.in_proj_weight", "self_attn.{qkv}_proj.weight", "linear"),
        ("qkv/bias", "attn.in_proj_bias", "self_attn.{qkv}_proj.bias", "same"),
        ("attention_out/kernel", "attn.out_proj.weight", "self_attn.out_proj.weight", "linear"),
        ("attention_out/bias", "attn.out_proj.bias", "self_attn.out_proj.bias", "same"),
        ("norm_2/scale", "ln_2.weight", "layer_norm2.weight", "same"),
        ("norm_2/bias", "ln_2.bias", "layer_norm2.bias", "same"),
        ("mlp_in/kernel", "mlp.c_fc.weight", "mlp.fc1.weight", "linear"),
        ("mlp_in/bias", "mlp.c_fc.bias", "mlp.fc1.bias", "same"),
        ("mlp_out/kernel", "mlp.c_proj.weight", "mlp.fc2.weight", "linear"),
        ("mlp_out/bias", "mlp.c_proj.bias", "mlp.fc2.bias", "same"),
    ):
        yield ParamRule(
            f"{module}/tower/blocks/{path}",
            f"{original}.resblocks.{{i}}.{name}",
            layout,
            huggingface=f"{huggingface}.encoder.layers.{{i}}.{hub_name}",
        )


def _stage() -> Iterator[ParamRule]:
    for path, name, layout in (
        ("conv/kernel", "pcm.conv.conv.weight", "conv1d"),
        ("norm/scale", "pcm.norm.weight", "same"),
        ("norm/bias", "pcm.norm.bias", "same"),
        ("score/kernel", "pcm.score.weight", "linear"),
        ("score/bias", "pcm.score.bias", "same"),
        ("attention_norm/scale", "att.norm1.weight", "same"),
        ("attention_norm/bias", "att.norm1.bias", "same"),
        ("query/kernel", "att.attn.q.weight", "linear"),
        ("query/bias", "att.attn.q.bias", "same"),
        ("key_value/kernel", "att.attn.kv.weight", "linear"),
        ("key_value/bias", "att.attn.kv.bias", "same"),
        ("attention_out/kernel", "att.attn.proj.weight", "linear"),
        ("attention_out/bias", "att.attn.proj.bias", "same"),
    ):
        yield ParamRule(
            f"distill/stage_{{i}}/{path}", f"PatchListProcessing.blocks.{{i}}.{name}", layout
        )


def _token_weights() -> Iterator[ParamRule]:
    for module, name in (
        ("patch_weight", "p_feat_w"),
        ("frame_weight", "f_feat_w"),
        ("word_weight", "w_feat_w"),
    ):
        for layer in range(3):
            dense, linear = f"{module}/dense_{layer}", f"{name}.{2 * layer}"
            yield ParamRule(f"{dense}/kernel", f"{linear}.weight", "linear")
            yield ParamRule(f"{dense}/bias", f"{linear}.bias", "same")


V, T = "vision_model", "text_model"
CLIP_RULES = (
    ParamRule("clip/logit_scale", "clip.logit_scale", "same", huggingface="logit_scale"),
    ParamRule("clip/visual/patch_embedding", "clip.visual.conv1.weight", "patches",
         huggingface=f"{V}.embeddings.patch_embedding.weight"),
    ParamRule("clip/visual/class_embedding", "clip.visual.class_embedding", "same",
         huggingface=f"{V}.embeddings.class_embedding"),
    ParamRule("clip/visual/position_embedding", "clip.visual.positional_embedding", "same",
         huggingface=f"{V}.embeddings.position_embedding.weight"),
    ParamRule("clip/visual/norm_pre/scale", "clip.visual.ln_pre.weight", "same",
         huggingface=f"{V}.pre_layrnorm.weight"),
    ParamRule("clip/visual/norm_pre/bias", "clip.visual.ln_pre.bias", "same",
         huggingface=f"{V}.pre_layrnorm.bias"),
    *_block("clip/visual", "clip.visual.transformer", V),
    ParamRule("clip/visual/norm_post/scale", "clip.visual.ln_post.weight", "same",
         huggingface=f"{V}.post_layernorm.weight"),
    ParamRule("clip/visual/norm_post/bias", "clip.visual.ln_post.bias", "same",
         huggingface=f"{V}.post_layernorm.bias"),
    ParamRule("clip/visual/projection", "clip.visual.proj", "same",
         huggingface="visual_projection.weight", huggingface_layout="linear"),
    ParamRule("clip/text/token_embedding", "clip.token_embedding.weight", "same",
         huggingface=f"{T}.embeddings.token_embedding.weight"),
    ParamRule("clip/text/position_embedding", "clip.positional_embedding", "same",
         huggingface=f"{T}.embeddings.position_embedding.weight"),
    *_block("clip/text", "clip.transformer", T),
    ParamRule("clip/text/norm_final/scale", "clip.ln_final.weight", "same",
         huggingface=f"{T}.final_layer_norm.weight"),
    ParamRule("clip/text/norm_final/bias", "clip.ln_final.bias", "same",
         huggingface=f"{T}.final_layer_norm.bias"),
    ParamRule("clip/text/projection", "clip.text_projection", "same",
         huggingface="text_projection.weight", huggingface_layout="linear"),
)  # fmt: skip
HVPNET_HEAD = (*_stage(), *_token_weights())


class NamingScheme(NamedTuple):
    """How a checkpoint names its tensors: which rules apply, and how it spells their names."""

    huggingface: bool = False
    head: bool = True  # False: CLIP alone, without HVP-Net's head
    spell: Callable[[str], str] = str  # a rule's name -> the name in the file

    def rules(self) -> Iterator[tuple[str, str, str]]:
        """(path here, name in the checkpoint, layout in the checkpoint) of each parameter."""
        for rule in CLIP_RULES + HVPNET_HEAD if self.head else CLIP_RULES:
            if not self.huggingface:
                yield rule.path, self.spell(rule.original), rule.layout
            elif rule.huggingface:
                layout = rule.huggingface_layout or rule.layout
                yield rule.path, self.spell(rule.huggingface), layout


ORIGINAL = NamingScheme()
HUGGING_FACE = NamingScheme(huggingface=True, head=False)
