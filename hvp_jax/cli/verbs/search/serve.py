"""The verb `serve`: a page in the browser that searches an index."""

import dataclasses
import logging

from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.parallel.compile_cache import use_compile_cache

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ServeResult:
    address: str
    text: str = dataclasses.field(default="ended", metadata={"json": None})


def run(index: Path, port: int, weights: Path | None = None) -> ServeResult:
    """Serves the page at 127.0.0.1 until Ctrl-C.

    Raises UsageError if the port is taken or there is no index, before anything is served.
    """
    try:
        from hvp_jax.search.app import server
        from hvp_jax.search.app.of_index import app_of
        from hvp_jax.search.query import Index
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError(f"serve needs {error.name}: pip install -r requirements-app.txt") from None
    listening = server.bind(port)
    opened = Index.open(index, weights)
    use_compile_cache(opened.retriever.config.compile_cache, index)
    app = app_of(opened)
    address = f"http://{server.HOST}:{listening.getsockname()[1]}"
    logger.info("%s searches %s; Ctrl-C ends", address, index)
    server.run(app, listening)
    return ServeResult(address)
