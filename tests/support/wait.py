"""Tests wait for conditions, never for the clock: a generous limit is there only to end a test that
has failed.
"""

import asyncio
import time
from collections.abc import Callable, Iterator

LIMIT = 30.0
"""Seconds after which a condition counts as never coming true."""

_SHORTEST, _LONGEST = 0.001, 0.05


class NeverHappened(AssertionError):
    """A condition that a test waited for did not come true within its limit."""


def wait_until(condition: Callable[[], bool], what: str, *, limit: float = LIMIT) -> None:
    """Return as soon as `condition()` is true; raise `NeverHappened`, naming `what`, after `limit`
    seconds.

    It blocks its thread. On an event loop use `wait_until_async`, or what you wait for cannot move.
    """
    pauses = _pauses(what, limit)
    while not condition():
        pause = next(pauses)
        time.sleep(pause)


async def wait_until_async(condition: Callable[[], bool], what: str, *, limit: float = LIMIT) -> None:
    """Do as `wait_until` does, and let the event loop run between two looks."""
    pauses = _pauses(what, limit)
    while not condition():
        pause = next(pauses)
        await asyncio.sleep(pause)


def _pauses(what: str, limit: float) -> Iterator[float]:
    """Seconds to the next look: a tenth of what has passed, for a look may be a request to a server."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) <= limit:
        yield min(max(passed / 10, _SHORTEST), _LONGEST)
    raise NeverHappened(f"not within {limit:g} s: {what}")
