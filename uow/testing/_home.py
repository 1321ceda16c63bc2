"""An event loop in a thread of its own, where a connection lives that belongs to one loop.

A test client runs the app in a loop of its own, sometimes a new one for each request, and the test may
have another. A connection at home here can be used from all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal
from sqlalchemy.util import greenlet_spawn

Result = TypeVar("Result")


class Home:
    """Starts its thread when it is first needed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._lock: asyncio.Lock | None = None

    def call(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Await `work()` there, and block until it is done."""
        result: Result = self._open().call(work)
        return result

    async def go(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Await `work()` there, from any other loop; a cancellation reaches it."""
        return await asyncio.wrap_future(self._open().start_task_soon(work))

    async def in_turn(self, awaitable: Awaitable[Result]) -> Result:
        """To be awaited there: one at a time, for a call that was cancelled may still be on its way out."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            return await awaitable

    def run_sync(self, work: Callable[[], Result]) -> Result:
        """Run sync code of SQLAlchemy's that awaits its driver."""
        return self.call(lambda: greenlet_spawn(work))

    def close(self) -> None:
        """End the thread."""
        self._portal = None
        self._stack.close()

    def _open(self) -> BlockingPortal:
        if self._portal is None:
            self._portal = self._stack.enter_context(start_blocking_portal("asyncio"))
        return self._portal
