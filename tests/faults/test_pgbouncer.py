"""The service and the library behind PgBouncer in transaction mode, with the settings of docs/deployment.md.

Skipped where there is none, see `tests/support/pgbouncer.py`. `make faults` goes on for longer.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from api.database import open_database
from api.settings import Settings
from tests.api.load import Crowd, Ledger, assert_kept, assert_nothing_else, watched
from tests.api.service import Service, assert_problem, new_item
from tests.faults.conftest import DRIVERS, KEPT, MakePooled
from tests.support.backends import Mode
from tests.support.pgbouncer import KEEPS_THE_READER, PgBouncerBackend
from tests.support.wait import LIMIT, wait_until
from tests.uow.units import count, make_tables, names, request, run, within
from uow import Database, errors

LENGTH = int(os.environ.get("FAULTS", "1"))
CUSTOMERS = 8
STEPS = 10 * LENGTH
BLOWS = 3 * LENGTH
SEED = 9

ONE_LINK = {"default_pool_size": "1"}
# PostgreSQL is back sooner than after the 15 seconds for which it is left alone otherwise.
TRIES_AGAIN = {"server_login_retry": "1"}


# The service


class Pooled:
    """The service behind PgBouncer, and customers who are in each other's way."""

    def __init__(self, backend: PgBouncerBackend, folder: Path) -> None:
        self.backend = backend
        self.service = Service(backend, folder)

    def rush(self, blow: Callable[[], None] | None = None) -> Ledger:
        """What the customers were told while it was hit again and again; stock is conserved throughout."""
        print(f"seed {SEED}")  # noqa: T201 - who repeats a failure needs it
        self.service.start()
        items = [new_item(self.service.client(), stock=60) for _ in range(4)]
        with watched(self.backend) as looks:
            crowd = Crowd(self.service.base_url, items, customers=CUSTOMERS, steps=STEPS, seed=SEED)
            crowd.start()
            for number in range(BLOWS if blow else 0):
                enough = (number + 1) * CUSTOMERS * STEPS // (4 * BLOWS)
                wait_until(partial(acknowledged, crowd, enough), "the customers get on", limit=4 * LIMIT)
                assert blow is not None
                blow()
            ledger = crowd.finish()
        assert crowd.failures == []
        assert sum(ledger.answers.values()) == CUSTOMERS * STEPS
        assert [look for look in looks if isinstance(look, list) and look != []] == []
        assert_kept(self.backend, ledger)
        assert_nothing_else(self.backend, ledger, first_receipts=len(items))
        self.backend.wait_until_at_rest()
        return ledger

    def retried(self) -> Counter[str]:
        """Why requests were run again, as their log lines say it."""
        return Counter(line["retried"] for line in self.service.lines() if "retried" in line)


def acknowledged(crowd: Crowd, enough: int) -> bool:
    return crowd.acknowledged >= enough or bool(crowd.failures)


@pytest.fixture
def pooled(make: MakePooled, driver: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pooled]:
    """Not started yet, with `pooler = true` and nothing else that it would not have without PgBouncer."""
    settings = {**KEEPS_THE_READER, **KEPT[driver], **getattr(request, "param", {})}
    made = Pooled(make(DRIVERS[driver], settings), tmp_path)
    yield made
    made.service.close()


def test_L6_orders_at_serializable_fail_nobody_behind_pgbouncer(pooled: Pooled) -> None:
    """Four connections to PostgreSQL are shared by all."""
    rule = {"match": "POST /orders/", "isolation": "serializable"}
    pooled.service.env["UOW_UNIT_OF_WORK__RULES"] = json.dumps([rule])
    pooled.service.env["UOW_UNIT_OF_WORK__RETRY_ATTEMPTS"] = "10"
    ledger = pooled.rush()
    assert set(ledger.answers) <= {200, 201, 409}
    assert pooled.retried().keys() == {"serialization-failure"}
    assert pooled.backend.connections() <= 4


def test_L7_pgbouncer_killed_under_load_costs_nobody_an_error(pooled: Pooled) -> None:
    """kill -9, and back at once: what was under way is run again, and what was at COMMIT is asked for."""
    ledger = pooled.rush(pooled.backend.pgbouncer.restart)
    assert set(ledger.answers) <= {200, 201, 409}
    assert any("connection-lost" in reason for reason in pooled.retried())


@pytest.mark.parametrize("pooled", [TRIES_AGAIN], indirect=True, ids=["tries-again"])
def test_L7_postgresql_restarted_behind_pgbouncer_under_load_loses_nothing(pooled: Pooled) -> None:
    """PgBouncer takes connections all the while and drops them again, so some are told to come back."""
    ledger = pooled.rush(pooled.backend.server.restart)
    assert set(ledger.answers) <= {200, 201, 409, 503}


# The reader and the writer, who share one connection to PostgreSQL


@pytest.fixture
async def shared(make: MakePooled, driver: str) -> AsyncIterator[tuple[PgBouncerBackend, Database]]:
    """One connection to PostgreSQL for all, and a database as the service opens it."""
    backend = make(DRIVERS[driver], {**KEEPS_THE_READER, **KEPT[driver], **ONE_LINK})
    make_tables(backend)
    async with open_database(settings_of(backend)) as database:
        yield backend, database


def settings_of(backend: PgBouncerBackend) -> Settings:
    return Settings.model_validate({"database": {"url": backend.database_url, "pooler": True}})


def insert_named(name: str) -> Callable[[Session], int]:
    """A row, and the process of the server that has written it."""

    def work(session: Session) -> int:
        run("INSERT INTO items (name) VALUES (:name)", name=name)(session)
        return pid(session)

    return work


def pid(session: Session) -> int:
    return int(session.execute(text("SELECT pg_backend_pid()")).scalar_one())


def said(session: Session, name: str) -> str:
    return str(session.execute(text(f"SHOW {name}")).scalar_one())


async def test_L25_who_reads_cannot_write_on_the_connection_on_which_others_do(
    shared: tuple[PgBouncerBackend, Database],
) -> None:
    """By turns and at once: PgBouncer gives each of them its own setting, on the same connection."""
    backend, database = shared
    links = set()
    for turn in range(10):
        links.add(await within(database, "async", insert_named(f"turn-{turn}")))
        links.add(await within(database, "async", pid, read_only=True))
        with pytest.raises(errors.ReadOnlyUnitOfWork):
            await within(database, "async", insert_named("never"), read_only=True)
    assert len(links) == 1

    written = [within(database, "async", insert_named(f"once-{each}")) for each in range(10)]
    read = [within(database, "async", count, read_only=True) for _ in range(10)]
    refused = [within(database, "async", insert_named("never"), read_only=True) for _ in range(10)]
    ended = await asyncio.gather(*written, *read, *refused, return_exceptions=True)
    assert set(ended[:10]) == links
    assert all(isinstance(each, int) for each in ended[10:20])
    assert all(isinstance(each, errors.ReadOnlyUnitOfWork) for each in ended[20:])
    assert len(names(backend)) == 20
    assert "never" not in names(backend)


async def test_what_a_transaction_has_set_is_gone_for_the_next_one(
    shared: tuple[PgBouncerBackend, Database],
) -> None:
    """SET LOCAL, as deadlines are told to the server; a failed transaction leaves nothing behind either."""
    _, database = shared
    timeout = partial(said, name="statement_timeout")

    def set_and_fail(session: Session) -> None:
        run("SET LOCAL statement_timeout = '12s'")(session)
        assert timeout(session) == "12s"
        run("SELECT 1 / 0")(session)

    for method in ("POST", "GET"):
        recorder = await request(database, "async", timeout, method=method, deadline=LIMIT)
        assert (recorder.json() != "0") is (method == "POST")
        assert await within(database, "async", timeout) == "0"
    await within(database, "async", run("SET LOCAL statement_timeout = '12s'"))
    assert await within(database, "async", timeout) == "0"
    with pytest.raises(Exception, match="division by zero"):
        await within(database, "async", set_and_fail)
    assert await within(database, "async", timeout) == "0"
    assert await within(database, "async", timeout, read_only=True) == "0"


async def test_a_reader_that_was_switched_to_writing_switches_nobody_else(
    shared: tuple[PgBouncerBackend, Database],
) -> None:
    backend, database = shared
    read_only = partial(said, name="transaction_read_only")
    with pytest.raises(errors.UnitOfWorkDoomed):
        await within(database, "async", run("SET default_transaction_read_only = off"), read_only=True)
    assert await within(database, "async", read_only, read_only=True) == "on"
    assert await within(database, "async", read_only) == "off"
    with pytest.raises(errors.ReadOnlyUnitOfWork):
        await within(database, "async", insert_named("never"), read_only=True)
    assert names(backend) == []


async def test_readers_at_once_find_what_they_have_prepared(make: MakePooled, driver: str) -> None:
    """Each read is a transaction of its own for PgBouncer: the next message may go to another connection."""
    backend = make(DRIVERS[driver], {**KEEPS_THE_READER, **KEPT[driver]})
    make_tables(backend)
    async with open_database(settings_of(backend)) as database:
        for _ in range(10):
            seen = [within(database, "async", count, read_only=True) for _ in range(20)]
            assert await asyncio.gather(*seen) == [0] * 20


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_with_prepared_statements_kept_by_pgbouncer_drivers_need_no_settings(
    make: MakePooled, mode: Mode
) -> None:
    """Its own default since 1.24: async and sync sessions of one program prepare as they always do."""
    backend = make("pg18", {**KEEPS_THE_READER, "max_prepared_statements": "200"})
    make_tables(backend)
    async with Database(backend.database_url) as database:
        for turn in range(12):  # psycopg prepares what it has seen five times
            inserts = [insert_named(f"{turn}-{each}") for each in range(8)]
            await asyncio.gather(*(within(database, mode, each) for each in inserts))
            seen = [within(database, mode, count, read_only=True) for _ in range(8)]
            assert await asyncio.gather(*seen) == [8 * (turn + 1)] * 8


# A PgBouncer that is set up otherwise


REFUSALS = {
    "unsupported startup parameter": {},
    "is not read-only": {"ignore_startup_parameters": "default_transaction_read_only,options"},
}


@pytest.mark.parametrize("says", REFUSALS)
async def test_L25_a_reader_that_pgbouncer_would_let_write_is_refused(
    make: MakePooled, driver: str, says: str
) -> None:
    backend = make(DRIVERS[driver], REFUSALS[says])
    make_tables(backend)
    async with open_database(settings_of(backend)) as database:
        await within(database, "async", insert_named("written"))
        with pytest.raises(Exception, match=says):
            await within(database, "async", count, read_only=True)


def test_a_service_that_can_have_no_reader_says_at_its_start_what_to_do(
    make: MakePooled, tmp_path: Path
) -> None:
    backend = make("pg18", {"ignore_startup_parameters": "default_transaction_read_only"})
    service = Service(backend, tmp_path)
    try:
        service.start()
        assert "let the pooler pass it on" in service.log()
        assert service.client().get("/readyz").status_code == 503
        assert_problem(service.client().get("/items/"), 500, "read-only-unit")
    finally:
        service.close()
