"""The application of an index and its model."""

from typing import Any

from starlette.applications import Starlette

from data.records import Segment
from hvp_jax.search import recall
from hvp_jax.search.app import why
from hvp_jax.search.app.application import create_app
from hvp_jax.search.query import Index


def app_of(index: Index) -> Starlette:
    """The page and the API that search `index`."""

    def explain(text: str, clip: Segment) -> dict[str, Any]:
        index.retriever.check_query(text)
        return why.to_json(index.retriever.explain(text, clip))

    return create_app(
        index,
        root=index.manifest.root,
        explain=explain,
        about=lambda: describe(index),
        warm_up=lambda: index.search(["a video"]),  # compiles what a search computes
    )


def describe(index: Index) -> dict[str, Any]:
    """The answer of /api/index."""
    share, clips = index.recall(), len(index)
    text = f"{clips:,} clips of {index.manifest.root}, model {index.retriever.weights}"
    return {
        "text": f"{text}; {recall.describe(share)}" if share else text,
        "clips": clips,
        "videos": index.manifest.root,
        "weights": index.retriever.weights,
        "fingerprint": index.retriever.fingerprint,
        "recall": share,
    }
