"""The relay: takes what is owed from the table to the destinations, at least once and in order.

Any number of relays share the work, in this process and in others. Of each subject only the first event is on
its way to a destination, so that the next one follows when that is delivered, dead or discarded. Nothing is
kept in a relay that must not be lost: who takes over from one that was killed finds its leases run out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Self

from sqlalchemy.ext.asyncio import AsyncSession

from ._listen import can_listen, listen
from ._message import CloudEvent, Destination, GiveUp, TryLater
from ._publish import Outbox
from ._store import BEFORE_ALL, Claimed, Failed, claim, end, find, owed_elsewhere, plan_anew

logger = logging.getLogger("uow")

_MARGIN = 30.0  # seconds of a lease beyond the time for sending: to write down how it went
_LAST_LOOK = 0.5  # seconds for a look that is under way when a relay is stopped
# Seconds after which it looks once more, and then less and less often: not each unit that publishes wakes the
# relays up, and a COMMIT may take its time.
_AFTERWARDS = 0.1
_IN_A_ROW = 5  # failures after which a destination is taken to be away
_LONGEST_PAUSE = 60.0  # seconds for which one that is away is left alone
_LONGEST_WISH = 24 * 3600.0  # seconds for which a destination may put an event off


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after a failure: `first`, doubled each time up to `longest`; half of that at least.

    Both are in seconds.
    """

    first: float = 1.0
    longest: float = 3600.0
    random: Random = field(default_factory=Random)

    def after(self, failures: int) -> float:
        """Seconds until the next attempt."""
        most = min(self.longest, self.first * 2.0 ** min(failures - 1, 64))
        return most * self.random.uniform(0.5, 1.0)


def _said(error: BaseException) -> str:
    """What has failed, in a line; httpx says nothing of a link that broke, and its cause does."""
    cause: BaseException | None = error
    while cause is not None and not str(cause):
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__ if cause is None else f"{type(error).__name__}: {cause}"


class Relay:
    """Sends the events of an outbox, until it is stopped: `await relay.run()`, or `async with relay:`.

    `concurrency` bounds how many are on their way to one destination at a time, `timeout`, in seconds, how
    long one of them may take. One that has failed is tried again after a `backoff`; the `max_attempts`-th
    failure is the last, as is one with `GiveUp`: it is dead then, until an operator retries or discards it,
    and the next of its subject goes on. A relay looks each `poll` seconds, and on PostgreSQL at once when
    something was published, unless `listens` is false: behind a pooler in transaction mode nothing can be
    heard.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        concurrency: int = 16,
        max_attempts: int = 20,
        timeout: float = 10.0,
        poll: float = 1.0,
        backoff: Backoff | None = None,
        listens: bool = True,
    ) -> None:
        self.outbox = outbox
        self.concurrency = concurrency
        self.max_attempts = max_attempts
        self.timeout = timeout
        self.poll = poll
        self.backoff = backoff or Backoff()
        self._listens = listens and can_listen(outbox.database)
        self._lines = [_Line(self, destination) for destination in outbox.destinations]
        self._stopping = False
        self._running: asyncio.Task[None]

    async def run(self) -> None:
        """Send until `stop()`; returns when what was under way then has ended. Not twice at a time."""
        beside = [self._tell_of_others(), *([self._hear()] if self._listens else [])]
        lines = [asyncio.create_task(line.run(), name=f"outbox {line.name}") for line in self._lines]
        tasks = [*lines, *map(asyncio.create_task, beside)]
        try:
            await asyncio.gather(*lines)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        """Begin nothing more; what is under way is finished."""
        self._stopping = True
        for line in self._lines:
            line.end_look()
        self.wake()

    def wake(self) -> None:
        """Look at once; to be called on the relay's own event loop."""
        for line in self._lines:
            line.woken.set()

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run(), name="outbox relay")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        await self._running

    async def _hear(self) -> None:
        await listen(self.outbox.database, self.wake)

    async def _tell_of_others(self) -> None:
        """Warn, once, of what is owed to names that this relay does not have: it would wait unseen."""
        others: dict[str, int] | None = None
        while others is None:
            try:
                async with self.outbox.database.new_unit(read_only=True, name="outbox relay") as unit:
                    others = await owed_elsewhere(unit.session, self.outbox.names)
            except Exception:  # the lines say what keeps them from the database
                await asyncio.sleep(self.poll)
        if others:
            counts = ", ".join(f"{name} ({count})" for name, count in others.items())
            logger.warning(
                "outbox: events wait for destinations that are not here, and nobody sends them: %s;"
                " name each again as it was, or discard what is owed to it",
                counts,
            )


class _Line:
    """What goes from one relay to one destination."""

    def __init__(self, relay: Relay, destination: Destination) -> None:
        self.name = destination.name
        self.woken = asyncio.Event()
        self._relay = relay
        self._destination = destination
        self._database = relay.outbox.database
        self._sending: set[asyncio.Task[None]] = set()
        self._sent: list[int] = []  # and not written down yet, as what has failed
        self._failed: list[Failed] = []
        self._after = BEFORE_ALL
        self._in_a_row = 0
        self._counted = 0  # failures since the start, one for all that were under way together
        self._look: asyncio.Timeout | None = None
        self._silent_until = 0.0
        self._wished_until = 0.0  # by the destination itself: what was under way then does not end it

    async def run(self) -> None:
        """Claim, send, write down; until the relay stops and nothing is under way."""
        pause = self._relay.poll
        try:
            while self._is_needed:
                self.woken.clear()
                if not await self._step() and self._is_needed:
                    try:
                        await asyncio.wait_for(self.woken.wait(), pause)
                        pause = min(self._relay.poll, _AFTERWARDS)
                    except TimeoutError:
                        pause = min(self._relay.poll, 2 * pause)
        finally:
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)
            if (close := getattr(self._destination, "aclose", None)) is not None:
                await close()

    def end_look(self) -> None:
        """Wait no longer for a look, which has nothing to finish, where the database does not answer."""
        look, self._look = self._look, None  # one that is ending cannot be told again
        if look is not None:
            look.reschedule(asyncio.get_running_loop().time() + _LAST_LOOK)

    @property
    def _is_needed(self) -> bool:
        return bool(self._sending or self._sent or self._failed or not self._relay.is_stopping)

    async def _step(self) -> bool:
        """Write down what has ended, and begin what can be; whether there may be more to begin at once."""
        room = self._room()
        try:
            claimed = await self._in_units(room)
        except Exception as error:
            known = self._database.condition(error) is not None or isinstance(error, OSError)
            said = getattr(error, "orig", None) or error  # without the statement and its parameters
            logger.warning("outbox %s: the database: %s", self.name, said, exc_info=not known)
            if self._relay.is_stopping:  # nobody can be told: whoever comes next sends these once more
                self._sent, self._failed = [], []
            return False
        for each in claimed:
            task = asyncio.create_task(self._send(each), name=f"outbox {self.name} {each.number}")
            self._sending.add(task)
            task.add_done_callback(self._over)
        return bool(claimed) and len(claimed) == room

    def _room(self) -> int:
        """How many more may be begun; one at a time where the destination seems to be away."""
        if self._relay.is_stopping or asyncio.get_running_loop().time() < self._silent_until:
            return 0
        return (1 if self._in_a_row >= _IN_A_ROW else self._relay.concurrency) - len(self._sending)

    async def _in_units(self, room: int) -> list[Claimed]:
        """What was claimed; nobody is kept waiting for the writer where there is nothing to write."""
        sent, failed, name = self._sent[:], self._failed[:], f"outbox {self.name}"
        numbers: Sequence[int] = ()
        if not sent and not failed:
            if room < 1:
                return []
            numbers = await self._looked(room, name)
            if not numbers:
                return []
        async with self._database.new_unit(name=name) as unit:
            await plan_anew(unit.session)
            await end(unit.session, sent, failed)
            if room > 0 and not numbers:
                numbers = await self._find(unit.session, room)
            claimed = await claim(unit.session, numbers, self._relay.timeout + _MARGIN) if numbers else []
        del self._sent[: len(sent)], self._failed[: len(failed)]
        return claimed

    async def _looked(self, room: int, name: str) -> Sequence[int]:
        """What is due, as a unit of its own sees it that only reads: in one transaction, for its settings."""
        try:
            async with (
                asyncio.timeout(None) as self._look,
                self._database.new_unit(read_only=True, snapshot=True, name=name) as unit,
            ):
                await plan_anew(unit.session)
                return await self._find(unit.session, room)
        except TimeoutError:
            if not self._relay.is_stopping:
                raise
            return []
        finally:
            self._look = None

    async def _find(self, session: AsyncSession, room: int) -> Sequence[int]:
        """What is due, from the lane on where the last look has ended, so that none waits for the others."""
        found = await find(session, self.name, self._after, room)
        if not found and self._after != BEFORE_ALL:
            self._after = BEFORE_ALL
            found = await find(session, self.name, self._after, room)
        if found:
            self._after = found[-1].lane if len(found) == room else BEFORE_ALL
        return [each.number for each in found]

    async def _send(self, claimed: Claimed) -> None:
        event = CloudEvent(
            id=claimed.id,
            source=self._relay.outbox.source,
            type=claimed.type,
            subject=claimed.subject,
            time=claimed.time,
            data=claimed.data,
        )
        began, limit = self._counted, asyncio.timeout(self._relay.timeout)
        try:
            async with limit:
                await self._destination.send(event)
        except Exception as error:
            late = TimeoutError(f"not taken within {self._relay.timeout:g} s")  # else it has no text
            self._failed.append(self._failure(claimed, late if limit.expired() else error, began))
        else:
            self._in_a_row = 0
            self._silent_until = self._wished_until
            self._sent.append(claimed.number)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self.woken.set()

    def _pause(self, began: int) -> float:
        """How long to leave the destination alone, in seconds.

        What was under way together fails together, and counts once: a moment's trouble is no outage.
        """
        if began < self._counted:
            return 0.0
        self._counted += 1
        self._in_a_row += 1
        if self._in_a_row < _IN_A_ROW:
            return 0.0
        return min(self._relay.backoff.after(self._in_a_row - _IN_A_ROW + 1), _LONGEST_PAUSE)

    def _failure(self, claimed: Claimed, error: Exception, began: int) -> Failed:
        """When this event is to be tried again, and when the destination."""
        relay = self._relay
        said = _said(error)
        now, pause = asyncio.get_running_loop().time(), self._pause(began)
        again = relay.backoff.after(claimed.attempts)
        if isinstance(error, TryLater):
            wish = min(max(error.seconds, 0.0), _LONGEST_WISH)
            self._wished_until, again = max(self._wished_until, now + wish), max(again, wish)
        self._silent_until = max(self._silent_until, self._wished_until, now + pause)
        what = f"{claimed.type} {claimed.id} of {claimed.subject}"
        if claimed.attempts >= relay.max_attempts or isinstance(error, GiveUp):
            logger.error("outbox %s: %s is dead, attempt %d: %s", self.name, what, claimed.attempts, said)
            return Failed(claimed, said, None)
        logger.warning("outbox %s: %s, attempt %d failed: %s", self.name, what, claimed.attempts, said)
        asyncio.get_running_loop().call_later(again, self.woken.set)
        return Failed(claimed, said, again)
