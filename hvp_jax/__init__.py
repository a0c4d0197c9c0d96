"""HVP-Net in JAX: hierarchical visual perception for text-video retrieval (arXiv 2601.12768)."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Retriever":  # on first use: the import of this package imports no JAX
        from hvp_jax.retrieval.retriever import Retriever

        return Retriever
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
