"""What `on_commit` took, run after COMMIT: in order, each at most once, and no failure changes anything."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

import anyio

Callback = Callable[[], Any]

logger = logging.getLogger("uow")


async def run_callbacks(
    name: str, callbacks: list[tuple[Callback, bool]], limiter: anyio.CapacityLimiter
) -> None:
    """Run and consume them, those of threads in a thread, whoever cancels the caller meanwhile."""
    interruption: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # a client that has gone does not undo what was committed
        while callbacks:
            call, on_loop = callbacks.pop(0)
            try:
                answer = call() if on_loop else await anyio.to_thread.run_sync(call, limiter=limiter)
                if inspect.isawaitable(answer):
                    await answer
            except asyncio.CancelledError as error:  # costs the one that waits, not those behind it
                interruption = error
            except Exception:
                logger.exception("%s: the on_commit callback %r failed", name, call)
    if interruption is not None:
        raise interruption


def run_callbacks_sync(name: str, callbacks: list[tuple[Callback, bool]]) -> None:
    """The same without an event loop."""
    while callbacks:
        call, _ = callbacks.pop(0)
        try:
            answer = call()
            if inspect.iscoroutine(answer):
                answer.close()
                raise TypeError("a coroutine cannot be awaited here: write `async with new_unit()`")
        except Exception:
            logger.exception("%s: the on_commit callback %r failed", name, call)
