"""The verb `index`: makes a folder of videos searchable, or brings its index up to date."""

from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.parallel.compile_cache import use_compile_cache
from hvp_jax.retrieval.retriever import Retriever
from hvp_jax.search.building.build import BuildResult, build


def run(
    weights: Path,
    videos: Path,
    index: Path,
    segment_seconds: int,
    tokens: str,
    *,
    shard: tuple[int, int] | None = None,
    join: bool = False,
) -> BuildResult:
    """Encodes what is new in a folder of videos, and drops what is gone from the index."""
    if shard and join:
        raise UsageError("--shard encodes videos and --join commits them; give one of the two")
    retriever = Retriever.load(weights)
    use_compile_cache(retriever.config.compile_cache, index)
    return build(
        retriever,
        videos,
        index,
        segment_seconds=segment_seconds,
        tokens=tokens,
        shard=shard,
        join=join,
    )
