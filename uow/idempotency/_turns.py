"""Requests with the same key in one process: one at a time, and who waits holds no connection."""

from __future__ import annotations

import asyncio
from collections import deque

Name = tuple[str, str]
"""Whose key it is, and the key."""

_Place = tuple[asyncio.AbstractEventLoop, str, str]


class Turn:
    """The right to be the one that works on a key; `end` gives it to whoever asks next."""

    __slots__ = ("_name", "_turns")

    def __init__(self, turns: Turns, name: Name) -> None:
        self._turns: Turns | None = turns
        self._name = name

    def end(self) -> None:
        """What is to be known of the key is in the database; a second call does nothing."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.end(self._name)


class Turns:
    """Who works on which key, in any event loop of this process."""

    def __init__(self) -> None:
        self._waiting: dict[_Place, deque[asyncio.Future[None]]] = {}  # for each key that is worked on

    async def take(self, name: Name, until: float) -> Turn | None:
        """Wait for the key until then, in the time of the event loop; None if it was not to be had."""
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
