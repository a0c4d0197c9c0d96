"""Which part of the model an operation belongs to, by the name that JAX gives it.

A name holds the scopes of Flax's modules and of `jax.named_scope`, such as
`jit(train_step)/shard_map/transpose(jvp(HVPNet))/HVPNet.encode_video/visual/tower/while/body/...`.
"""

import re

OTHER = "other"
EXCHANGE = "exchange"

_PRODUCT = r"/(qkv|attention_out|mlp_in|mlp_out)/(.*/)?(dot_general|transpose|reshape)$"
# The first pattern that matches decides. Forward and backward operations have the same scopes.
_PATTERNS = (
    (r"\boptimizer\b", "optimizer"),
    (r"\bexchange\b|/(all_gather|psum|pmax|reduce_scatter|all_reduce)\b", EXCHANGE),
    (r"\b(word|patch|frame)_weight/", "token_weights"),
    (r"\bdistill/.*\bcluster\b", "distillation_clustering"),
    (r"\bdistill/.*\bmerge\b", "distillation_merging"),
    (r"\bdistill/.*/conv/", "distillation_convolution"),
    (r"\bdistill/.*/(norm|score)/", "distillation_score"),
    (
        r"\bdistill/.*(\battention\b|/(query|key_value|attention_\w+)/|/(split|concatenate)$)",
        "distillation_attention",
    ),
    (r"\bdistill/.*(uniform|threefry|random)", "distillation_clustering"),
    (r"\bdistill\b", "distillation_other"),
    (r"\bpixels\b|/visual/(?!tower|norm)", "patches"),
    (rf"\bvisual/tower/.*{_PRODUCT}", "vision_products"),
    (rf"\btext/tower/.*{_PRODUCT}", "text_products"),
    (r"\bvisual/tower/.*(\battention\b|blocks/(split|concatenate|reshape))", "vision_attention"),
    (r"\btext/tower/.*(\battention\b|blocks/(split|concatenate|reshape))", "text_attention"),
    (r"\bvisual/.*norm_", "vision_norms"),
    (r"\btext/.*norm_", "text_norms"),
    # What a loop over the layers stacks for the backward pass, and takes from the stack.
    (r"\bvisual/tower/(while$|.*dynamic_(update_)?(index|slice))", "vision_residuals"),
    (r"\btext/tower/(while$|.*dynamic_(update_)?(index|slice))", "text_residuals"),
    (r"\bvisual/", "vision_activations"),
    (r"\btext/", "text_activations"),
    (r"\bscoring\b", "scoring"),
    (r"\bloss\b", "loss"),
    (r"\bHVPNet\.encode_(text|video)\b", "features"),
    (r"\bparams\[", "weights"),  # changed to another type or layout
)
_COMPILED = tuple((re.compile(pattern), part) for pattern, part in _PATTERNS)
PARTS = (*dict.fromkeys(part for _, part in _PATTERNS), OTHER)


def part_of(op_name: str) -> str:
    """One of PARTS; OTHER for a name that no pattern matches."""
    for pattern, part in _COMPILED:
        if pattern.search(op_name):
            return part
    return OTHER
