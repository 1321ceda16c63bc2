"""A destination that wants to be left alone for a while is left alone."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.backends import Backend
from tests.support.wait import LIMIT
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell_all, until, words
from uow import Database
from uow.outbox import CloudEvent, TryLater

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
