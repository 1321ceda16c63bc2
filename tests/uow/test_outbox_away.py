"""A destination that is away, or wants to be left alone for a while or for ever, is left alone."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from tests.support.backends import Backend
from tests.support.wait import LIMIT
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell_all, until, words
from uow import Database
from uow.outbox import Backoff, CloudEvent, GiveUp, TryLater, Which, retry
from uow.outbox import _relay as relaying
from uow.outbox._store import Due

pytestmark = [pytest.mark.anyio, pytest.mark.backends("sqlite", "pg18")]


@pytest.fixture
async def database(backend: Backend, connect: Connect) -> Database:
    make_outbox_table(backend)
    return connect(backend)


@pytest.mark.parametrize("others", [None, OSError("broken")])
async def test_what_was_under_way_does_not_end_the_time_that_a_destination_has_asked_for(
    database: Database, others: Exception | None
) -> None:
    refused, ended = asyncio.Event(), asyncio.Event()
    asked: list[str] = []

    async def answer(event: CloudEvent) -> None:
        asked.append(event.subject)
        if len(asked) == 1:
            await refused.wait()
            asyncio.get_running_loop().call_later(0.2, ended.set)
            if others is not None:
                raise others
        elif len(asked) == 2:
            asyncio.get_running_loop().call_later(0.05, refused.set)
            raise TryLater("busy", 3600)

    outbox = outbox_of(database, Received(answer=answer))
    await tell_all(database, ("a", 1), ("b", 2), ("c", 3), ("d", 4))
    async with relay_of(outbox, concurrency=2):
        await asyncio.wait_for(ended.wait(), LIMIT)
    assert len(asked) == 2


async def test_a_destination_needs_no_more_than_a_name_and_send(database: Database, backend: Backend) -> None:
    class Plain:
        name = "plain"

        async def send(self, event: CloudEvent) -> None:
            sent.append(event.subject)

    sent: list[str] = []
    outbox = outbox_of(database, Plain())
    await tell_all(database, ("a", 1))
    async with relay_of(outbox):
        await until(lambda: sent, "it to be sent")
    assert (sent, words(backend)) == (["things/1"], [])


@dataclass(frozen=True)
class Noted(Backoff):
    """Waits for hardly anything, and notes after how many failures it was asked."""

    asked: list[int] = field(default_factory=list[int])

    def after(self, failures: int) -> float:
        self.asked.append(failures)
        return 0.01


async def test_what_fails_together_is_one_failure_of_its_destination(database: Database) -> None:
    """16 that were under way when the other side blinked are no reason to leave it alone for a minute."""
    together = asyncio.Barrier(16)

    async def blinks(event: CloudEvent) -> None:
        if len(failed) < 16:
            failed.append(event.subject)
            await together.wait()
            raise OSError("a moment's trouble")

    failed: list[str] = []
    received, noted = Received(answer=blinks), Noted()
    outbox = outbox_of(database, received)
    await tell_all(database, *((str(thing), thing) for thing in range(16)))
    async with relay_of(outbox, concurrency=16, backoff=noted):
        await until(lambda: len(received.events) == 16, "all to arrive")
    assert noted.asked == [1] * 16, "each event waits, and the destination does not"


async def test_failures_one_after_the_other_are_counted_each(database: Database) -> None:
    """The fifth time that all of them fail, the destination is left alone."""
    together = asyncio.Barrier(3)
    attempts = 0

    async def fails(event: CloudEvent) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 15:
            await together.wait()
            raise OSError("away")

    received, noted = Received(answer=fails), Noted()
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1), ("b", 2), ("c", 3))
    async with relay_of(outbox, concurrency=3, backoff=noted):
        await until(lambda: len(received.events) == 3, "all to arrive")
    of_events = [wave for wave in range(1, 6) for _ in range(3)]
    assert sorted(noted.asked) == sorted([*of_events, 1]), "the last is the first rest of the destination"


async def test_an_event_that_a_destination_gives_up_is_dead_at_once(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    def gives_up(event: CloudEvent) -> None:
        if len(asked) < 1:
            asked.append(event.id)
            raise GiveUp("too large for this queue")

    asked: list[str] = []
    received = Received(answer=gives_up)
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1), ("b", 1))
    async with relay_of(outbox):
        await until(lambda: received.words == ["b"], "the next of its subject")
        await until(lambda: words(backend, "state = 'pending'") == [], "it to be written down")
    assert f"{asked[0]} of things/1 is dead, attempt 1: GiveUp: too large for this queue" in caplog.text
    assert backend.query("SELECT attempts, error FROM outbox_events") == [
        (1, "GiveUp: too large for this queue")
    ]
    async with database.new_unit() as unit:
        assert await retry(unit.session, Which(state="dead")) == 1
    async with relay_of(outbox):
        await until(lambda: received.words == ["b", "a"], "nothing is lost")


async def test_nobody_puts_an_event_off_for_more_than_a_day(database: Database, backend: Backend) -> None:
    def busy(event: CloudEvent) -> None:
        raise TryLater("in a million years", 1e14)

    outbox = outbox_of(database, Received(answer=busy))
    await tell_all(database, ("a", 1))
    async with relay_of(outbox):
        await until(lambda: backend.query("SELECT 1 FROM outbox_events WHERE error > ''"), "its answer")
    ((due,),) = backend.query("SELECT due FROM outbox_events")
    assert time.time() + 86_000 < due < time.time() + 86_460


async def test_a_database_that_answers_too_late_is_told_of_and_asked_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As asyncpg says that nobody has answered: that is not a look which was ended."""

    async def late(*_: object) -> list[Due]:
        monkeypatch.undo()
        raise TimeoutError("too late")

    monkeypatch.setattr(relaying, "find", late)
    received = Received()
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1))
    async with relay_of(outbox):
        await until(lambda: received.words == ["a"], "it to be sent")
    assert "outbox received: the database: too late" in caplog.text
