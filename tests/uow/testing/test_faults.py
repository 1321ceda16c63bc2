"""What a test lets go wrong takes the way of a real error, on each engine and in both kinds of session."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from tests.support.backends import Backend, Mode
from tests.uow.testing.apps import app_with
from tests.uow.testing.clients import asgi_client
from tests.uow.units import count, insert, names, within
from uow import Database, errors
from uow.problems import PROBLEMS, Condition
from uow.testing import rolled_back

ON_BOTH = (
    Condition.SERIALIZATION,
    Condition.TIME_UP,
    Condition.UNIQUE,
    Condition.FOREIGN_KEY,
    Condition.CHECK,
    Condition.BAD_DATA,
    Condition.STORAGE_FULL,
    Condition.OTHER,
)


def drivers_error(backend: Backend, mode: Mode) -> Any:
    """The unique violation of the driver in use."""
    if backend.name == "sqlite":
        error = sqlite3.IntegrityError("UNIQUE constraint failed")
        error.sqlite_errorcode = sqlite3.SQLITE_CONSTRAINT_UNIQUE
        return error
    if backend.name == "pg18" and mode == "async":
        return asyncpg.UniqueViolationError("as asyncpg says it")
    return psycopg.errors.UniqueViolation("as psycopg says it")


async def test_a_commit_is_refused(mode: Mode, database: Database) -> None:
    """L5: the answer is that of the error table, nothing is kept, and the next request is fine."""
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        await client.post("/nut")
        for condition in ON_BOTH:
            probe.fail_commit(condition)
            refused = await client.post("/bolt")
            assert refused.status_code == PROBLEMS[condition].status
            assert refused.json()["type"] == PROBLEMS[condition].type
            assert refused.json()["outcome"] == "rolled_back"
            probe.assert_rolled_back()
            assert (await client.get("/names")).json() == ["nut"]
        assert (await client.post("/bolt")).status_code == 200


async def test_a_statement_is_refused(mode: Mode, database: Database) -> None:
    """L4: the n-th from now, in writers and in readers."""
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        assert (await client.post("/nut")).status_code == 200
        for condition in ON_BOTH:
            probe.fail_statement(3, condition)
            assert (await client.get("/count")).json() == 1
            assert (await client.get("/count")).json() == 1
            assert (await client.post("/bolt")).json()["type"] == PROBLEMS[condition].type
            probe.fail_statement(1, condition)
            assert (await client.get("/count")).json()["type"] == PROBLEMS[condition].type
        assert (await client.get("/names")).json() == ["nut"]


async def test_an_exception_of_the_driver_is_wrapped_by_sqlalchemy(
    backend: Backend, mode: Mode, database: Database
) -> None:
    async with rolled_back(database) as probe:
        given: BaseException = drivers_error(backend, mode)
        probe.fail_statement(1, given)
        with pytest.raises(IntegrityError) as raised:
            await within(database, mode, insert("nut"))
        assert given in (raised.value.orig, getattr(raised.value.orig, "__cause__", None))

        probe.fail_commit(given)
        with pytest.raises(IntegrityError):
            await within(database, mode, insert("nut"))
        probe.assert_rolled_back(2)
        assert await within(database, mode, count) == 0


async def test_any_other_exception_is_raised_as_it_is(mode: Mode, database: Database) -> None:
    async with rolled_back(database) as probe:
        probe.fail_statement(1, TimeoutError("on its way"))
        with pytest.raises(TimeoutError, match="on its way"):
            await within(database, mode, count)
        probe.fail_commit(OSError("on its way"))
        with pytest.raises((OSError, errors.OutcomeUnknown)):
            await within(database, mode, insert("nut"))
        assert await within(database, mode, count) == 0


async def test_a_refused_statement_dooms_the_unit_of_who_swallows_it(mode: Mode, database: Database) -> None:
    """L9: outside of a savepoint."""

    def swallow(session: Session) -> None:
        with suppress(IntegrityError):
            insert("nut")(session)

    def contain(session: Session) -> None:
        insert("first")(session)
        nested = session.begin_nested()
        with pytest.raises(IntegrityError):
            insert("nut")(session)
        nested.rollback()
        insert("last")(session)

    async with (
        rolled_back(database) as probe,
        asgi_client(app_with(database, mode, swallow=swallow, contain=contain)) as client,
    ):
        probe.fail_statement(1, Condition.UNIQUE)
        assert (await client.post("/swallow")).json()["type"] == "/problems/unit-doomed"
        probe.fail_statement(2, Condition.UNIQUE)
        assert (await client.post("/contain")).status_code == 200
        assert (await client.get("/names")).json() == ["first", "last"]


async def test_every_kind_of_statement_counts(mode: Mode, database: Database) -> None:
    """With parameters, with none, and with many."""

    def many(session: Session) -> None:
        session.connection().exec_driver_sql("SELECT 1")
        session.connection().exec_driver_sql("SELECT 1", execution_options={"no_parameters": True})
        session.execute(text("INSERT INTO items (name) VALUES (:n)"), [{"n": "a"}, {"n": "b"}])

    async with rolled_back(database) as probe:
        for n in (1, 2, 3):
            probe.fail_statement(n, Condition.UNIQUE)
            with pytest.raises(IntegrityError):
                await within(database, mode, many)
        await within(database, mode, many)
        assert await within(database, mode, count) == 2


async def test_a_connection_is_lost_at_a_statement(mode: Mode, database: Database) -> None:
    """L7: the unit is rolled back, and the next one has a connection again."""
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        await client.post("/nut")
        probe.drop_connection()
        lost = await client.post("/bolt")
        assert lost.json()["type"] == "/problems/connection-lost"
        assert lost.headers["retry-after"]
        probe.assert_rolled_back()
        probe.drop_connection()
        assert (await client.get("/names")).status_code == 503
        assert (await client.get("/names")).json() == ["nut"]


async def test_a_connection_that_is_lost_stays_lost_for_its_unit(mode: Mode, database: Database) -> None:
    def go_on(session: Session) -> None:
        with pytest.raises(DBAPIError) as raised:
            insert("nut")(session)
        assert raised.value.connection_invalidated
        insert("bolt")(session)

    async with rolled_back(database) as probe:
        probe.fail_statement(1, Condition.CONNECTION_LOST)
        with pytest.raises(errors.UnitOfWorkDoomed):
            await within(database, mode, go_on)
        assert await within(database, mode, count) == 0


@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "kept"])
async def test_a_connection_is_lost_during_commit(mode: Mode, database: Database, kept: bool) -> None:
    """L8: nobody knows what became of it but the test."""
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        await client.post("/nut")
        probe.drop_connection(during_commit=True, kept=kept)
        unknown = await client.post("/bolt")
        assert unknown.json()["type"] == "/problems/commit-outcome-unknown"
        assert unknown.json()["outcome"] == "unknown"
        assert probe.units[-1].outcome == "unknown"
        assert (await client.get("/names")).json() == (["bolt", "nut"] if kept else ["nut"])

        probe.fail_commit(Condition.CONNECTION_LOST)
        assert (await client.post("/object")).json()["outcome"] == "unknown"
        assert (await client.get("/count")).json() == (2 if kept else 1)


@pytest.mark.backends("sqlite", "pg18")
async def test_what_waits_to_go_wrong_happens_to_the_commit_if_no_statement_comes_before(
    mode: Mode, database: Database
) -> None:
    def arm(session: Session) -> None:
        insert("nut")(session)
        probe.drop_connection()

    async with rolled_back(database) as probe:
        with pytest.raises(errors.OutcomeUnknown):
            await within(database, mode, arm)
        assert await within(database, mode, count) == 0


async def test_what_was_to_go_wrong_and_did_not_fails_the_test(backend: Backend, database: Database) -> None:
    block = rolled_back(database)
    probe = block.__enter__()
    probe.fail_commit(Condition.UNIQUE)
    probe.fail_statement(9, Condition.CHECK)
    probe.drop_connection()
    probe.drop_connection(during_commit=True)
    assert len(probe.faults.waiting()) == 4
    with pytest.raises(AssertionError, match=r"fail_commit\(.*UNIQUE.*\), .*fail_statement\(9,"):
        await block.__aexit__(None, None, None)
    assert names(backend) == []


async def test_a_test_that_fails_before_keeps_its_own_error(database: Database) -> None:
    async def fail() -> None:
        async with rolled_back(database) as probe:
            probe.fail_commit(Condition.UNIQUE)
            raise LookupError

    with pytest.raises(LookupError):
        await fail()


async def test_what_cannot_be_is_refused_at_once(backend: Backend, database: Database) -> None:
    async with rolled_back(database) as probe:
        with pytest.raises(ValueError, match="STALE"):
            probe.fail_commit(Condition.STALE)
        with pytest.raises(ValueError, match="STALE"):
            probe.fail_statement(1, Condition.STALE)
        with pytest.raises(ValueError, match="from 1"):
            probe.fail_statement(0, Condition.UNIQUE)
        with pytest.raises(ValueError, match="during_commit"):
            probe.drop_connection(kept=True)
        if backend.name == "sqlite":
            with pytest.raises(ValueError, match="LOCK_TIMEOUT"):
                probe.fail_commit(Condition.LOCK_TIMEOUT)


async def test_requests_that_run_at_once_share_one_count(database: Database) -> None:
    async with rolled_back(database, wait=30) as probe, asgi_client(app_with(database, "async")) as client:
        probe.fail_statement(2, Condition.SERIALIZATION)
        answers = await asyncio.gather(*(client.post(path) for path in ("/nut", "/bolt", "/object")))
        assert sorted(answer.status_code for answer in answers).count(503) == 1
