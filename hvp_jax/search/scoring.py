"""The full score of texts and the clips of a table, whose tokens are integers.

The integers become tokens one block of clips at a time, inside the compiled program: all of them
as float32 would be copied several times, which takes longer than to score them.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from hvp_jax.models.similarity import TextFeatures, VideoFeatures, scores
from hvp_jax.retrieval.batching import chunks, least, num_rows, pad_rows
from hvp_jax.search.tokens import dequantize

TEXTS = (1, 8, 64)  # texts are padded to the least of these that they fit in
CLIPS = (8, 64, 200, 256)  # and clips likewise; multiples of BLOCK
BLOCK = 4  # clips whose tokens are computed at a time


@flax.struct.dataclass
class StoredFeatures:
    """The features of clips as in a table. `features` are without patches, if there are tokens."""

    tokens: Integer[Array, "clips l m d"] | None
    token_scale: Float[Array, "clips l m"] | None
    features: VideoFeatures


@functools.partial(jax.jit, static_argnames="dtype")
def _score(text: TextFeatures, stored: StoredFeatures, *, dtype: DTypeLike) -> Array:
    """[clips / BLOCK, texts, BLOCK]"""

    def of_block(part: StoredFeatures) -> Array:
        features = part.features
        if part.tokens is not None:
            assert part.token_scale is not None
            patches = jnp.asarray(dequantize(part.tokens, part.token_scale))
            features = dataclasses.replace(features, patches=patches)
        return scores(text, features, dtype=dtype).sum((0, 1))

    blocks = jax.tree.map(lambda x: jnp.reshape(x, (-1, BLOCK, *x.shape[1:])), stored)
    return jax.lax.map(of_block, blocks)


def score(
    text: TextFeatures, stored: StoredFeatures, dtype: DTypeLike
) -> Float[np.ndarray, "texts clips"]:
    """The score of every text and every clip: that of the clips' own features, to rounding.

    `dtype`: of the products of words and patches, as the model has it.
    """

    def rows_of(tree: Any, first: int, size: int) -> Any:
        return jax.tree.map(lambda x: x[first : first + size], tree)

    clips = num_rows(stored)
    columns = []
    for part in chunks(range(clips), CLIPS[-1]):
        of_clips = pad_rows(rows_of(stored, part[0], len(part)), least(CLIPS, len(part)))
        rows = []
        for texts in chunks(range(num_rows(text)), TEXTS[-1]):
            of_texts = pad_rows(rows_of(text, texts[0], len(texts)), least(TEXTS, len(texts)))
            block = np.asarray(_score(of_texts, of_clips, dtype=dtype))
            rows.append(np.concatenate(list(block), axis=1)[: len(texts), : len(part)])
        columns.append(np.concatenate(rows))
    return np.concatenate(columns, axis=1)
