"""The page and its JSON API as a Starlette application.

The model answers in one thread, videos are decoded in others, and the event loop never waits.
"""

import asyncio
import contextlib
import functools
import importlib.resources
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data.errors import DataError, UsageError, UserError
from data.records import Segment
from data.storage.path import PathLike
from hvp_jax.parallel import machine_errors
from hvp_jax.search.app import openapi, why
from hvp_jax.search.app.batching import QueryBatcher
from hvp_jax.search.app.interface import Hit, Searchable
from hvp_jax.search.app.media import Media

# Another name in the Host header is that of a foreign page, which the browser was led here from.
HOSTS = ["127.0.0.1", "localhost"]
MAX_K, USUAL_K = 500, 12
DECODERS = max(2, (os.cpu_count() or 2) // 2)
PICTURES_KEPT = "private, max-age=600"  # by the browser
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def create_app(
    index: Searchable,
    *,
    root: PathLike,
    explain: Callable[[str, Segment], dict[str, Any]],
    about: Callable[[], dict[str, Any]],
    warm_up: Callable[[], object] = lambda: None,
) -> Starlette:
    """The application that searches an index. It serves no file but videos of it below `root`.

    `explain` and `about` make the answers of /api/explain and /api/index, as `openapi` has them.
    `warm_up` is called before the first search, and the page does not wait for it.
    """
    api = _Api(index, Media(index, root), explain, about)
    routes = [Route(path, _page(*file)) for path, file in PAGE.items()] + [
        Route("/api/search", api.search),
        Route("/api/similar/{id:path}", api.similar),
        Route("/api/explain", api.explain),
        Route("/api/poster/{id:path}", api.poster),
        Route("/api/preview/{id:path}", api.preview),
        Route("/media/{id:path}", api.media),
        Route("/api/index", api.about),
        Route("/api/openapi.json", api.openapi),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        api.warm_up(warm_up)
        yield
        api.close()

    return Starlette(
        routes=routes,
        middleware=[
            Middleware(_SecurityHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
        ],
        exception_handlers={
            UserError: _user_error,
            OSError: _machine_error,
            HTTPException: _http_error,
            Exception: _machine_error,
        },
        lifespan=lifespan,
    )


class _Api:
    """The answers; each method is one address."""

    def __init__(self, index: Searchable, media: Media, explain: Callable, about: Callable):
        self._index, self._media, self._explain, self._about = index, media, explain, about
        self._model = ThreadPoolExecutor(1, "model")
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")
        self._batcher = QueryBatcher(index.search, self._model)

    async def search(self, request: Request) -> Response:
        text = _text(request, "q", "k", "where", "exact")
        where = request.query_params.get("where", "")
        began = time.perf_counter()
        hits = await self._batcher.search(
            text, k=_count(request), where=where, exact=_flag(request)
        )
        return JSONResponse({"query": text, **_answer(hits, began)})

    async def similar(self, request: Request) -> Response:
        _refuse_others(request, "k", "where")
        clip_id, where = request.path_params["id"], request.query_params.get("where", "")
        began = time.perf_counter()
        find = functools.partial(self._index.similar, clip_id, k=_count(request), where=where)
        return JSONResponse({"id": clip_id, **_answer(await _call(self._model, find), began)})

    async def explain(self, request: Request) -> Response:
        text = _text(request, "q", "id")
        clip_id = request.query_params.get("id", "")
        segment = await _call(self._decoders, self._media.segment, clip_id)
        body = await _call(self._model, self._explain, text, segment)
        return JSONResponse({"id": clip_id, "query": text, **body})

    async def poster(self, request: Request) -> Response:
        return await self._picture(request, self._media.poster)

    async def preview(self, request: Request) -> Response:
        return await self._picture(request, self._media.preview)

    async def _picture(self, request: Request, make: Callable[[str], bytes]) -> Response:
        content = await _call(self._decoders, make, request.path_params["id"])
        return Response(content, media_type="image/webp", headers={"cache-control": PICTURES_KEPT})

    async def media(self, request: Request) -> Response:
        path, kind = await _call(self._decoders, self._media.file, request.path_params["id"])
        return FileResponse(path, media_type=kind)

    async def about(self, request: Request) -> Response:
        return JSONResponse(await _call(self._decoders, self._about))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document(why.SCHEMA))

    def warm_up(self, function: Callable[[], object]) -> None:
        self._model.submit(function)

    def close(self) -> None:
        for pool in (self._model, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)
        self._media.close()


async def _call(pool: ThreadPoolExecutor, function: Callable, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


def _answer(hits: Sequence[Hit], began: float) -> dict[str, Any]:
    names = ("id", "path", "start", "end", "score", "captions")
    found = [{name: getattr(hit, name) for name in names} for hit in hits]
    return {"hits": found, "seconds": round(time.perf_counter() - began, 4)}


def _refuse_others(request: Request, *known: str) -> None:
    for name in request.query_params:
        if name not in known:
            raise UsageError(f"{request.url.path} has no parameter {name}")


def _text(request: Request, *known: str) -> str:
    """The parameter q; raises UsageError if it is missing or another is not among `known`."""
    _refuse_others(request, "q", *known)
    if "q" not in request.query_params:
        raise UsageError("q is missing; say what the video shows")
    return request.query_params["q"]


def _count(request: Request) -> int:
    text = request.query_params.get("k", str(USUAL_K))
    if not text.isdecimal() or not 1 <= int(text) <= MAX_K:
        raise UsageError(f"k={text} is not a whole number from 1 to {MAX_K}")
    return int(text)


def _flag(request: Request) -> bool:
    text = request.query_params.get("exact", "0")
    if text not in ("0", "1"):
        raise UsageError(f"exact={text} is neither 0 nor 1")
    return text == "1"


def _page(name: str, kind: str) -> Callable:
    content = importlib.resources.files(__package__).joinpath("page", name).read_bytes()

    async def respond(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return respond


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(message.split())}, status)


async def _user_error(request: Request, error: Exception) -> Response:
    return _error(404 if isinstance(error, DataError) else 400, str(error))


async def _machine_error(request: Request, error: Exception) -> Response:
    explained = machine_errors.explain(error)
    if explained is None and isinstance(error, FileNotFoundError):
        return _error(404, f"{error.filename} is gone")
    return _error(500, str(explained or f"a bug, see the log of serve: {type(error).__name__}"))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, f"{request.url.path}: {error.detail}")


class _SecurityHeaders:
    """Adds to every response what keeps other pages from using it, and this one to itself."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY)
            await send(message)

        await self._app(scope, receive, send_with_headers)
