"""Event loops that clean up after Orbax where reading or writing fails."""

import asyncio
import contextlib
from collections.abc import Iterator


class _PatientLoop(asyncio.SelectorEventLoop):
    """Ends when all that it began has ended.

    Orbax reads and writes arrays all at once and leaves at the first error. What comes of
    the others is then printed, a traceback each, and files are still being written.
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _PatientLoop()


@contextlib.contextmanager
def await_pending_tasks() -> Iterator[None]:
    """Within, in all threads, event loops end when all that they began has ended."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_PatientPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
