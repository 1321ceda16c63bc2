"""One call at a time inside a unit's session: tasks wait for their turn, and who cannot wait is refused.

A call is known by its greenlet: each awaited call of an async session has its own, and each thread has
one. While a savepoint is open, only the context that opened it, and the tasks started in that context,
get a turn: what others do would be undone with it. Threads cannot wait: they do not know for what.
"""

from __future__ import annotations

import asyncio
from asyncio import Future as AsyncFuture
from asyncio import Task, current_task
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import ContextVar
from threading import Lock, Thread, current_thread
from typing import Any, cast

from greenlet import getcurrent
from sqlalchemy.util import await_only

from . import _messages

_innermost: ContextVar[Savepoint | None] = ContextVar("uow_savepoint", default=None)


class Savepoint:
    """A savepoint of a unit, and the place of a context that is inside of it."""

    __slots__ = ("around", "below", "opener", "over", "turns")

    over: bool

    def __init__(self, turns: Turns) -> None:
        self.turns: Turns | None = turns
        self.opener: Task[Any] | None = turns.holder  # the task, because threads have no such place
        self.below = turns.top  # the unit's savepoint that this one is in
        self.around = _innermost.get()  # the context's, of this unit or of one around it
        while self.around is not None and self.around.over:  # what is over must not be kept
            self.around = self.around.around
        self.over = False

    def end(self) -> None:
        """It has ended; contexts that were inside may live on, and must not keep the unit."""
        self.over = True
        self.turns = self.below = self.opener = None


class _Waiting:
    """A call that waits for its turn; the future tells whether it gets one."""

    __slots__ = ("future", "savepoint", "who")

    @property
    def granted(self) -> bool:
        """Whether it has got its turn."""
        future = self.future
        return future.done() and not future.cancelled() and not future.exception() and future.result()

    def __init__(self, savepoint: Savepoint | None) -> None:
        self.savepoint = savepoint
        self.who = current_task()
        self.future: AsyncFuture[bool] = asyncio.get_running_loop().create_future()


class Turns:
    """Who is inside the session of a unit, who waits to get in, and who may."""

    __slots__ = ("_entries", "_idle", "_lock", "_owner", "_queue", "asynchronous", "holder", "name", "top")

    def __init__(self, name: str, *, asynchronous: bool) -> None:
        self.name = name
        self.asynchronous = asynchronous
        self.holder: Any = None
        """The task or thread that is inside."""
        self.top: Savepoint | None = None
        """The innermost open savepoint of an async session."""
        self._owner: object = None
        self._entries = 0
        self._lock = Lock()
        self._queue: list[_Waiting] = []
        self._idle: Future[None] | None = None

    def is_inside(self) -> bool:
        """Whether the caller has the turn: this is a call inside a call."""
        return self._owner is getcurrent()

    @property
    def is_busy(self) -> bool:
        """Whether somebody is inside, and may be waiting there for an answer or for a connection."""
        return self._lock.locked()

    def take(self, savepoint: Savepoint | None = None) -> bool:
        """Go inside; waits in a greenlet, and raises ConcurrentUse where that cannot be.

        False if the caller is inside already: whatever has happened meanwhile, it may go on to its end.
        `savepoint` is the one that the call is about to end, whatever context it is made in.
        """
        me = getcurrent()
        if self._owner is me:
            self._entries += 1
            return False
        if not ((self.top is None or self._may_enter(savepoint)) and self._lock.acquire(blocking=False)):
            self._wait(me, savepoint)
        self._owner = me
        self._entries = 1
        try:
            self.holder = current_task() if self.asynchronous else current_thread()
        except RuntimeError:  # a thread without a loop that has got hold of an async session
            self.holder = current_thread()
        return True

    def give(self) -> None:
        """Go outside, and let the next one in."""
        self._entries -= 1
        if not self._entries:
            self._owner = self.holder = None
            if self._queue:
                self._hand_over()
            else:
                self._release()

    def open_savepoint(self) -> None:
        """The caller, who is inside, has opened a savepoint: it belongs to the caller's context."""
        if self.asynchronous:
            self.top = Savepoint(self)
            _innermost.set(self.top)
            self.holder.add_done_callback(self._refuse_the_forgotten)

    def close_savepoint(self, savepoint: Savepoint) -> None:
        """It has ended, and with it those that are in it."""
        while not savepoint.over:
            assert self.top is not None  # what is not over is the top or below it
            ended, self.top = self.top, self.top.below
            opener = ended.opener
            ended.end()
            if opener is not None and (self.top is None or self.top.opener is not opener):
                opener.remove_done_callback(self._refuse_the_forgotten)
        self._refuse_the_forgotten()

    def whoever_is_inside(self) -> Future[None] | None:
        """A future of the moment when nobody is inside any more, if somebody is; those who wait are refused.

        To be asked when nobody new is let in: who comes in looks at that after `take`.
        """
        for waiting in self._queue:
            if not waiting.future.done():
                waiting.future.set_result(False)
        self._queue.clear()
        if self.top is not None:
            self.close_savepoint(self._outermost())  # whoever settles must not wait for their end
        if self._lock.locked() and self._idle is None:
            self._idle = Future()
            if not self._lock.locked():  # a thread has left between the two looks
                _tell(self._idle)
        return self._idle

    def _outermost(self) -> Savepoint:
        savepoint = self.top
        assert savepoint is not None
        while savepoint.below is not None:
            savepoint = savepoint.below
        return savepoint

    def _may_enter(self, savepoint: Savepoint | None) -> bool:
        """Whether the running context is inside the innermost open savepoint, or is about to end it."""
        return savepoint is self.top or self._place(_innermost.get()) is self.top

    def _place(self, savepoint: Savepoint | None) -> Savepoint | None:
        """The innermost savepoint of this unit that is still open, from this one outwards."""
        while savepoint is not None and (savepoint.over or savepoint.turns is not self):
            savepoint = savepoint.around
        return savepoint

    def _wait(self, me: object, savepoint: Savepoint | None) -> None:
        """Wait in the order of asking; returns with the lock taken."""
        forgotten = self._is_forgotten and not self._may_enter(savepoint)
        if forgotten or not getattr(me, "__sqlalchemy_greenlet_provider__", False):
            raise self._concurrent_use()
        waiting = _Waiting(savepoint or _innermost.get())
        self._queue.append(waiting)
        try:
            granted = await_only(waiting.future)
        except BaseException:
            if waiting in self._queue:
                self._queue.remove(waiting)
            elif waiting.granted:
                self._hand_over()
            raise
        if not granted:
            raise _messages.closed(self.name)

    def _hand_over(self) -> None:
        """Give the lock to the first of those who wait that may have it; else it is free."""
        for waiting in self._queue:
            if self._place(waiting.savepoint) is self.top and not waiting.future.done():
                self._queue.remove(waiting)
                waiting.future.set_result(True)
                return
        self._release()

    def _release(self) -> None:
        self._lock.release()
        if self._idle is not None:  # to be looked at last: who sets it looks at the lock after that
            _tell(self._idle)

    @property
    def _is_forgotten(self) -> bool:
        """Whether the task that has opened the innermost savepoint has ended without it."""
        return self.top is not None and self.top.opener is not None and self.top.opener.done()

    def _refuse_the_forgotten(self, opener: Task[Any] | None = None) -> None:
        """Those who wait for the end of a savepoint that nobody will end would wait for ever."""
        if self._is_forgotten:
            for waiting in [*self._queue]:
                if self._place(waiting.savepoint) is not self.top and not waiting.future.done():
                    self._queue.remove(waiting)
                    waiting.future.set_exception(self._savepoint_is_open(waiting.who))

    def _concurrent_use(self) -> Exception:
        me: Any = current_thread()
        with suppress(RuntimeError):  # no task: there is no loop here
            me = current_task() or me
        holder = self.holder  # of a thread, it may go at any moment
        if holder is None and self.top is not None:
            return self._savepoint_is_open(me)
        why = "another one is inside" if holder is None else f"{_name(holder)} is inside"
        return _messages.concurrent_use(self.name, _name(me), why)

    def _savepoint_is_open(self, who: Any) -> Exception:
        opener = None if self.top is None else self.top.opener
        why = f"{_name(opener)} has a savepoint open"
        return _messages.concurrent_use(self.name, _name(who), why)


def _name(task_or_thread: Any) -> str:
    if isinstance(task_or_thread, Thread):
        return f"thread {task_or_thread.name!r}"
    return f"task {cast('Task[Any]', task_or_thread).get_name()!r}"


def _tell(idle: Future[None]) -> None:
    with suppress(InvalidStateError):  # it is told already
        idle.set_result(None)
