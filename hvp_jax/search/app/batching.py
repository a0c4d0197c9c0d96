"""Queries that wait at the same time are answered together, by one call of `Index.search`."""

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from data.errors import UserError

MAX_QUERIES = 32  # that one call answers


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
    text: str
    k: int
    options: dict[str, Any]
    answer: asyncio.Future


class QueryBatcher:
    """Calls `search(texts, k=..., **options)` in `worker`, for one batch of queries at a time.

    While a call runs, queries gather; those with the same options are the next batch.
    """

    def __init__(self, search: Callable[..., Sequence[Sequence[Any]]], worker: Executor):
        self._search, self._worker = search, worker
        self._waiting: list[_Request] = []
        self._task: asyncio.Task | None = None

    async def search(self, text: str, *, k: int, **options: Any) -> Sequence[Any]:
        """The `k` best hits of a query. Raises what `search` raises for this query alone."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(text, k, options, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._answer_all())
        return await answer

    async def _answer_all(self) -> None:
        try:
            while self._waiting:
                batch = self._next_batch()
                try:
                    await self._answer(batch)
                except Exception as error:
                    await self._answer_each(batch, error)
        finally:
            self._task = None

    def _next_batch(self) -> list[_Request]:
        options = self._waiting[0].options
        batch = [request for request in self._waiting if request.options == options][:MAX_QUERIES]
        self._waiting = [request for request in self._waiting if request not in batch]
        return batch

    async def _answer_each(self, batch: list[_Request], error: Exception) -> None:
        """One query of several may be at fault: the others get their answers."""
        for request in batch:
            try:
                if len(batch) == 1 or not isinstance(error, UserError):
                    raise error
                await self._answer([request])
            except Exception as reason:
                if not request.answer.done():
                    request.answer.set_exception(reason)

    async def _answer(self, batch: list[_Request]) -> None:
        call = functools.partial(
            self._search,
            [request.text for request in batch],
            k=max(request.k for request in batch),
            **batch[0].options,
        )
        found = await asyncio.get_running_loop().run_in_executor(self._worker, call)
        for request, hits in zip(batch, found, strict=True):
            if not request.answer.done():  # the client may have gone
                request.answer.set_result(hits[: request.k])
