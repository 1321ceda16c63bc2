"""What the tests of the outbox publish, and where it goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sqlalchemy import MetaData, create_engine

from tests.support.backends import Backend
from tests.support.wait import wait_until_async
from uow import Database
from uow.outbox import Backoff, CloudEvent, Destination, Outbox, Relay, event, publish, table

QUICK = Backoff(first=0.01, longest=0.05, random=Random(6))


@event("thing.told", subject="things/{thing}")
@dataclass
class Told:
    thing: int
    word: str = ""


def make_outbox_table(backend: Backend) -> None:
    engine = create_engine(backend.url("sync"))
    made = table(MetaData())
    made.metadata.create_all(engine)
    engine.dispose()


def tell(word: str, thing: int = 1) -> None:
    publish(Told(thing, word))


def outbox_of(database: Database, *destinations: Destination) -> Outbox:
    return Outbox(database, destinations, source="/tests")


async def tell_all(database: Database, *told: tuple[str, int]) -> None:
    """Each in a unit of its own."""
    for word, thing in told:
        async with database.new_unit():
            tell(word, thing)


def words(backend: Backend, where: str = "1 = 1") -> list[str]:
    """What a second connection sees in the outbox, in the order of the numbers."""
    rows = backend.query(f"SELECT data FROM outbox_events WHERE {where} ORDER BY number")
    return [json.loads(row[0])["word"] for row in rows]


@dataclass
class Received:
    """A destination that keeps what it gets; `answer` may wait, and raise what refuses it."""

    name: str = "received"
    answer: Callable[[CloudEvent], Any] | None = None
    events: list[CloudEvent] = field(default_factory=list)
    closed: bool = False

    async def send(self, event: CloudEvent) -> None:
        await asyncio.sleep(0)
        if self.answer is not None:
            waiting = self.answer(event)
            if waiting is not None:
                await waiting
        self.events.append(event)

    async def aclose(self) -> None:
        self.closed = True

    @property
    def words(self) -> list[str]:
        return [json.loads(each.data)["word"] for each in self.events]


def relay_of(outbox: Outbox, **options: Any) -> Relay:
    """One that does not wait long for anything."""
    given: dict[str, Any] = {"backoff": QUICK, "poll": 0.05} | options
    return Relay(outbox, **given)


async def until(condition: Callable[[], object], what: str) -> None:
    await wait_until_async(lambda: bool(condition()), what)
