"""An event-loop policy under which Orbax's loops finish their tasks before they close."""

import asyncio
import contextlib
from collections.abc import Iterator


class _AwaitingLoop(asyncio.SelectorEventLoop):
    """Awaits all tasks that are still pending before it closes."""

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _AwaitingPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _AwaitingLoop()


@contextlib.contextmanager
def await_pending_tasks() -> Iterator[None]:
    """Inside this context, event loops of all threads await their pending tasks before closing.

    Orbax closes its loop at the first error; the reads and writes still in flight then call the
    closed loop, and TensorStore's C++ prints a traceback for each directly to stderr, past
    `logging` and `sys.excepthook`. Orbax takes no loop but makes its own, in threads of its own,
    with `asyncio.new_event_loop()`, so only the policy can replace it.
    """
    previous = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_AwaitingPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(previous)
