"""Tests wait for conditions, never for the clock: a generous limit is there only to end a test that
has failed.
"""

import asyncio
import time
from collections.abc import Callable

LIMIT = 30.0
"""Seconds after which a condition counts as never coming true."""

_PAUSE = 0.01


class NeverHappened(AssertionError):
    """A condition that a test waited for did not come true within its limit."""


def wait_until(condition: Callable[[], bool], what: str, *, limit: float = LIMIT) -> None:
    """Return as soon as `condition()` is true; raise `NeverHappened`, naming `what`, after `limit`
    seconds.

    It blocks its thread. On an event loop use `wait_until_async`, or what you wait for cannot move.
    """
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise NeverHappened(f"not within {limit:g} s: {what}")
        time.sleep(_PAUSE)


async def wait_until_async(condition: Callable[[], bool], what: str, *, limit: float = LIMIT) -> None:
    """Do as `wait_until` does, and let the event loop run between two looks."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise NeverHappened(f"not within {limit:g} s: {what}")
        await asyncio.sleep(_PAUSE)
