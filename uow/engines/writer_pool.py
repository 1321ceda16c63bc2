"""A pool of exactly one connection, handed out first come, first served, to threads and tasks alike."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from typing import Any, ClassVar, cast

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.util import await_only

from .threads import lent_thread

DEFAULT_TIMEOUT = 30.0


class Turn:
    """A lock that threads and tasks of any event loop take in the order in which they asked.

    The locks of `threading` and `asyncio` do not know each other, and SQLAlchemy's queues let a newcomer
    overtake those who wait.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._waiting: deque[Future[None]] = deque()

    def take(self, seconds: float) -> None:
        """Take the turn in a thread; TimeoutError after `seconds`."""
        ticket = self._ask()
        if ticket is not None:
            try:
                with lent_thread():
                    ticket.result(seconds)
            except BaseException:
                self._give_up(ticket)
                raise

    async def take_async(self, seconds: float) -> None:
        """Take the turn in a task; TimeoutError after `seconds`."""
        ticket = self._ask()
        if ticket is not None:
            try:
                async with asyncio.timeout(seconds):  # wait_for loses a cancellation on Python 3.11
                    await asyncio.wrap_future(ticket)
            except BaseException:
                self._give_up(ticket)
                raise

    def release(self) -> None:
        """Hand the turn to whoever has waited longest."""
        while True:
            with self._mutex:
                ticket = self._waiting.popleft() if self._waiting else None
                if ticket is None:
                    self._taken = False
                    return
            if ticket.set_running_or_notify_cancel():
                ticket.set_result(None)
                return

    @property
    def is_taken(self) -> bool:
        """Whether who asks now has to wait."""
        return self._taken

    def _ask(self) -> Future[None] | None:
        """None if the turn was free and is now taken, else the ticket to wait for.

        The ticket is made outside of the lock: a garbage collection at that moment may give a connection
        back, and with it the turn, in this very thread.
        """
        if self._take_free_turn(None):
            return None
        ticket: Future[None] = Future()
        return None if self._take_free_turn(ticket) else ticket

    def _take_free_turn(self, ticket: Future[None] | None) -> bool:
        """Take the turn if it is free; else put the ticket, if there is one, at the end of the queue."""
        with self._mutex:
            if not self._taken:
                self._taken = True
                return True
            if ticket is not None:
                self._waiting.append(ticket)
            return False

    def _give_up(self, ticket: Future[None]) -> None:
        """Drop the ticket; if the turn was handed over at the same moment, hand it on."""
        if not ticket.cancel():
            self.release()


class WriterPool(Pool):
    """Holds the one connection of a writer; who wants it waits for the turn, at most `timeout` seconds."""

    turn: ClassVar[Turn]

    def __init__(self, creator: Any, timeout: float = DEFAULT_TIMEOUT, **options: Any) -> None:
        super().__init__(creator, **options)
        self._timeout = timeout
        self._entry: ConnectionPoolEntry | None = None
        self._disposed = False

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            self._wait_for_turn()
        except TimeoutError as error:
            raise PoolTimeout(f"the writer was busy for {self._timeout:g} seconds") from error
        try:
            if self._entry is None:
                self._entry = self._create_connection()
            return self._entry
        except BaseException:
            self.turn.release()
            raise

    def _wait_for_turn(self) -> None:
        self.turn.take(self._timeout)

    @property
    def is_busy(self) -> bool:
        """Whether its connection, or that of the other kind of session, is in use."""
        return self.turn.is_taken

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        try:
            if self._disposed:
                record.close()
        finally:
            self.turn.release()

    def dispose(self) -> None:
        """Close the connection, now or when the unit that has it gives it back."""
        self._disposed = True
        if self._entry is not None and not self._entry.in_use:
            self._entry.close()

    def recreate(self) -> WriterPool:
        """A new, empty pool with the same options and the same queue."""
        return type(self)(
            self._creator,
            timeout=self._timeout,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def status(self) -> str:
        """One line for the log."""
        busy = self._entry is not None and self._entry.in_use
        return f"WriterPool: the connection is {'in use' if busy else 'free'}"


class AsyncWriterPool(WriterPool):
    """The same for an async driver: the wait is awaited."""

    _is_asyncio: Any = True  # SQLAlchemy's own pools set it in the same way

    def _wait_for_turn(self) -> None:
        await_only(self.turn.take_async(self._timeout))


def writer_pool(turn: Turn, *, asynchronous: bool) -> type[WriterPool]:
    """The class of a pool whose connection is handed out by this turn.

    A class and not an instance, because `create_engine` makes the pool, and makes it again at dispose.
    """
    base = AsyncWriterPool if asynchronous else WriterPool
    made: Any = type(base.__name__, (base,), {"turn": turn})
    return cast("type[WriterPool]", made)
