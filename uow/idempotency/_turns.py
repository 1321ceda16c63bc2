"""Requests with the same key: one at a time, and who waits holds no connection."""

from __future__ import annotations

import asyncio
from collections import deque

from ._locks import KeyLock, lock_key

Name = tuple[str, str]
"""Whose key it is, and the key."""

_Place = tuple[asyncio.AbstractEventLoop, str, str]


class Turn:
    """The right to be the one that works on a key; `end` gives it to whoever asks next."""

    __slots__ = ("_name", "_turns", "lock")

    def __init__(self, turns: Turns | None, name: Name) -> None:
        self._turns = turns
        self._name = name
        self.lock: KeyLock | None = None
        """What keeps other processes out, where there is such a thing."""

    def end(self) -> None:
        """What is to be known of the key is in the database; a second call does nothing."""
        turns, self._turns = self._turns, None
        if turns is not None:
            try:
                turns.end(self._name)
            finally:
                if self.lock is not None:
                    self.lock.end()


class Turns:
    """Who works on which key: in any event loop of this process, and in others that lock the same file."""

    def __init__(self) -> None:
        self._waiting: dict[_Place, deque[asyncio.Future[None]]] = {}  # for each key that is worked on

    async def take(self, name: Name, until: float, file: str | None = None) -> Turn | None:
        """Wait for the key until then, in the time of the event loop; None if it was not to be had.

        With `file`, no other process that names it has the key at the same time.
        """
        turn = await self._take_here(name, until)
        if turn is None or file is None:
            return turn
        try:
            turn.lock = await lock_key(file, *name, until)
        finally:
            if turn.lock is None:
                turn.end()
        return None if turn.lock is None else turn

    async def _take_here(self, name: Name, until: float) -> Turn | None:
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get((loop, *name))
        if waiting is None:
            self._waiting[loop, *name] = deque()
            return Turn(self, name)
        if (left := until - loop.time()) <= 0:
            return None
        mine = loop.create_future()
        waiting.append(mine)
        try:
            await asyncio.wait((mine,), timeout=left)
        except asyncio.CancelledError:
            if mine.done():  # it was given the key at this moment
                self.end(name)
            raise
        finally:
            if not mine.done():
                waiting.remove(mine)
        return Turn(self, name) if mine.done() else None

    def end(self, name: Name) -> None:
        """Give the key to whoever waits longest: if all woke up, each would wake once for every other."""
        place = (asyncio.get_running_loop(), *name)
        if self._waiting[place]:
            self._waiting[place].popleft().set_result(None)
        else:
            del self._waiting[place]
