"""Numbers come in the order of the commits of each subject, whoever publishes how slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from tests.support.backends import Backend, PostgresBackend
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, tell, words
from tests.uow.units import elsewhere
from uow import Database
from uow.outbox import Outbox
from uow.outbox import _publish as publishing

pytestmark = [pytest.mark.anyio, pytest.mark.backends("pg18")]


@pytest.fixture
async def database(postgres: PostgresBackend, connect: Connect) -> Database:
    make_outbox_table(postgres)
    database = connect(postgres, pool_size=20)
    Outbox(database, [Received("one"), Received("two")], source="/tests")
    return database


class Held:
    """A unit that has written its events and is kept from its COMMIT."""

    def __init__(self) -> None:
        self.written = asyncio.Event()
        self.go_on = asyncio.Event()


@asynccontextmanager
async def held(database: Database, *told: tuple[str, int]) -> AsyncIterator[Held]:
    state = Held()

    async def work() -> None:
        async with database.new_unit() as unit:
            for word, thing in told:
                tell(word, thing)

            @event.listens_for(unit.session.sync_session, "before_commit")
            def after_the_outbox(session: Session) -> None:
                state.written.set()
                await_only(state.go_on.wait())

    task = elsewhere(work())
    await asyncio.wait_for(state.written.wait(), LIMIT)
    try:
        yield state
    finally:
        state.go_on.set()
        await task


def waiting(postgres: PostgresBackend) -> int:
    """How many wait for an advisory lock."""
    sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return int(postgres.query(sql)[0][0])


def drawn(postgres: PostgresBackend) -> int:
    """The last number that was given to anybody."""
    return int(postgres.query("SELECT last_value FROM outbox_events_number_seq")[0][0])


async def publish_one(database: Database, word: str, *things: int) -> None:
    async with database.new_unit():
        for thing in things:
            tell(word, thing)


async def test_a_slow_committer_gets_lower_numbers_and_is_waited_for(
    database: Database, postgres: PostgresBackend
) -> None:
    async with held(database, ("slow", 1)) as slow:
        before = drawn(postgres)
        quick = elsewhere(publish_one(database, "quick", 1))
        await wait_until_async(lambda: waiting(postgres) == 1, "the quick one waits")
        # The lock is had before a number is drawn: else the lower number could be committed later.
        assert drawn(postgres) == before == 2
        assert words(postgres) == []
        slow.go_on.set()
        await quick
    assert words(postgres, "destination = 'one'") == ["slow", "quick"]


async def test_another_subject_waits_for_nobody(database: Database, postgres: PostgresBackend) -> None:
    async with held(database, ("slow", 1)):
        await asyncio.wait_for(elsewhere(publish_one(database, "quick", 2)), LIMIT)
        assert words(postgres, "destination = 'one'") == ["quick"]
    assert words(postgres, "destination = 'one'") == ["slow", "quick"]


async def test_many_events_of_one_unit_draw_no_number_before_all_locks_are_had(
    database: Database, postgres: PostgresBackend
) -> None:
    async with held(database, ("slow", 5)) as slow:
        before = drawn(postgres)
        quick = elsewhere(publish_one(database, "quick", *range(10)))
        await wait_until_async(lambda: waiting(postgres) == 1, "the quick one waits")
        assert drawn(postgres) == before
        slow.go_on.set()
        await quick
    rows = postgres.query("SELECT subject FROM outbox_events WHERE destination = 'two' ORDER BY number")
    assert [row[0] for row in rows] == ["things/5", *(f"things/{number}" for number in range(10))]


async def test_units_that_publish_on_the_same_subjects_in_any_order_are_no_deadlock(
    database: Database, postgres: PostgresBackend
) -> None:
    orders = [list(range(6)), list(reversed(range(6)))] * 15
    await asyncio.wait_for(
        asyncio.gather(*(publish_one(database, str(n), *things) for n, things in enumerate(orders))), LIMIT
    )
    assert len(words(postgres)) == 30 * 6 * 2


async def test_what_a_commit_listener_publishes_later_keeps_the_order_of_commits_too(
    database: Database, postgres: PostgresBackend
) -> None:
    async def late(word: str) -> None:
        async with database.new_unit() as unit:
            await unit.session.execute(text("SELECT 1"))
            event.listen(unit.session.sync_session, "before_commit", lambda _: tell(word, 1))

    async with held(database, ("slow", 1)) as slow:
        quick = elsewhere(late("late"))
        await wait_until_async(lambda: waiting(postgres) == 1, "it waits")
        slow.go_on.set()
        await quick
    assert words(postgres, "destination = 'one'") == ["slow", "late"]


def test_a_subject_has_one_lane_and_lanes_are_positive_numbers_of_64_bits() -> None:
    lanes = {publishing._lane(f"things/{number}") for number in range(1000)}
    assert len(lanes) == 1000
    assert all(0 <= lane < 2**63 for lane in lanes)
    assert publishing._lane("things/1") == publishing._lane("things/1")


@pytest.mark.backends("sqlite")
async def test_on_sqlite_the_one_writer_is_lock_enough(backend: Backend, connect: Connect) -> None:
    make_outbox_table(backend)
    database = connect(backend)
    Outbox(database, [Received()], source="/tests")
    await asyncio.gather(*(publish_one(database, str(number), 1) for number in range(30)))
    assert sorted(map(int, words(backend))) == list(range(30))
