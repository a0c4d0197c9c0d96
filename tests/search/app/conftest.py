"""The application over an index without a model."""

import contextlib

import pytest
from starlette.testclient import TestClient

from hvp_jax.search.app.application import create_app

EXPLANATION = {"score": 1.0, "taps": [1], "terms": [], "parts": []}


def app_over(index):
    return create_app(
        index,
        root=index.root,
        explain=lambda text, clip: {**EXPLANATION, "seen": [text, *clip[1:]]},
        about=lambda: {"text": "an index", "clips": len(index.ids)},
    )


@pytest.fixture
def client_of():
    """`client_of(index)` is a client of the page over `index`; it keeps errors of the server."""
    with contextlib.ExitStack() as stack:

        def connect(index):
            client = TestClient(
                app_over(index), base_url="http://127.0.0.1:8000", raise_server_exceptions=False
            )
            return stack.enter_context(client)

        yield connect
