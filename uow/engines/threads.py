"""Threads that wait for a connection do not count: whoever has one may need a thread to give it back.

Frameworks run `def` endpoints, and then their dependencies, exception handlers and the validation of their
answers, in a limited number of threads. If all of them wait for the pool, nobody who holds a connection
gets a thread to go on with, and everybody waits until `pool_timeout` is over.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress

from anyio import CapacityLimiter, from_thread, to_thread
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.util.queue import Empty


@contextmanager
def lent_thread() -> Generator[None]:
    """Let another thread run in the place of this one while it waits; nothing outside of anyio's threads."""
    limiter: CapacityLimiter | None = None
    with suppress(RuntimeError):  # no thread of anyio's
        limiter = from_thread.run_sync(_one_more)
    try:
        yield
    finally:
        if limiter is not None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                from_thread.run_sync(_one_less, limiter)


def _one_more() -> CapacityLimiter:
    limiter = to_thread.current_default_thread_limiter()
    limiter.total_tokens += 1
    return limiter


def _one_less(limiter: CapacityLimiter) -> None:
    limiter.total_tokens -= 1


class ThreadsPool(QueuePool):
    """SQLAlchemy's pool for threads, which lends the thread that has to wait."""

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._pool.get(block=False)
        except Empty:
            pass
        if self._overflow < self._max_overflow or self._max_overflow == -1:
            return super()._do_get()  # makes one more
        with lent_thread():
            return super()._do_get()
