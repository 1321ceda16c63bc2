"""However PostgreSQL has planned for an empty table, a look goes through the index.

It keeps a plan with the connection until the next ANALYZE. One from when the table had just been emptied
reads all of it at each step, which was 20 s for a look at 10,000 lanes, and over a minute for a claim.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.backends import PostgresBackend
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell, until
from uow import Database
from uow.outbox import _store as store

pytestmark = [pytest.mark.anyio, pytest.mark.backends("pg18", "pgsystem")]


@pytest.fixture
async def database(postgres: PostgresBackend, connect: Connect) -> Database:
    """Emptied a moment ago, and nobody looks at the table of their own accord."""
    make_outbox_table(postgres)
    postgres.execute("ALTER TABLE outbox_events SET (autovacuum_enabled = off)")
    postgres.execute("VACUUM ANALYZE outbox_events")
    return connect(postgres, pool_size=1)


async def look(session: AsyncSession) -> object:
    return await store.find(session, "received", store.BEFORE_ALL, 16)


async def take(session: AsyncSession) -> object:
    return await store.claim(session, range(1, 17), 40.0)


@pytest.mark.parametrize("step", [look, take])
async def test_a_plan_for_the_empty_table_is_not_used_for_a_full_one(
    database: Database, postgres: PostgresBackend, step: Callable[[AsyncSession], Awaitable[object]]
) -> None:
    """Asked of the server itself: which plans its connection has kept and used, and how one reads now."""
    for _ in range(10):  # from the sixth time on it would be a plan for all parameters, and kept
        async with database.new_unit() as unit:
            await store.plan_anew(unit.session)
            await step(unit.session)
    async with database.new_unit() as unit:
        await store.plan_anew(unit.session)
        await step(unit.session)
        kept = text(
            "SELECT sum(generic_plans), max(custom_plans) > 1 FROM pg_prepared_statements"
            " WHERE statement LIKE '%lane%' AND statement NOT LIKE '%pg_prepared%'"
        )
        assert tuple((await unit.session.execute(kept)).one()) == (0, True)
        explained = text(f"EXPLAIN {store._heads('postgresql').text}")
        rows = await unit.session.execute(explained, {"destination": "received", "after": -1, "most": 16})
        plan = "\n".join(row[0] for row in rows)
    assert "Seq Scan" not in plan
    assert "ix_outbox_events_lane" in plan


async def test_a_relay_that_has_looked_at_an_empty_table_never_reads_all_of_a_full_one(
    database: Database, postgres: PostgresBackend
) -> None:
    received = Received()
    async with relay_of(outbox_of(database, received), poll=0.01, listens=False):
        await until(lambda: scans(postgres, "idx_scan") > 20, "it to have looked often")
        before = scans(postgres, "seq_scan")
        async with database.new_unit():
            for thing in range(100):
                tell("a", thing)
        await until(lambda: len(received.events) == 100, "all to be sent")
        await until(lambda: scans(postgres, "n_tup_del") == 100, "the server to have counted it")
    assert scans(postgres, "seq_scan") == before


async def test_the_settings_end_with_the_transaction(database: Database) -> None:
    async with database.new_unit() as unit:
        await store.plan_anew(unit.session)
    async with database.new_unit() as unit:
        shown = await unit.session.execute(
            text("SELECT current_setting('plan_cache_mode'), current_setting('enable_seqscan')")
        )
        assert tuple(shown.one()) == ("auto", "on")


def scans(postgres: PostgresBackend, what: str) -> int:
    """What the server has counted; it does so with a delay of up to a second."""
    sql = f"SELECT {what} FROM pg_stat_user_tables WHERE relname = 'outbox_events'"
    return int(postgres.query(sql)[0][0])
