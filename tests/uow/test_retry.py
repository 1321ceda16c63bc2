"""L6: the whole request again where its unit is known to be aborted, and only there."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import TupleRow
from sqlalchemy import text
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from tests.support.backends import Backend, Mode, PostgresBackend, SqliteBackend
from tests.support.wait import LIMIT
from tests.uow.conftest import Connect
from tests.uow.retries import (
    HOWS,
    QUICK,
    Flaky,
    How,
    at_pause,
    fail_commits,
    reacting,
    terminated,
)
from tests.uow.units import (
    Item,
    insert,
    make_tables,
    names,
    request,
    run,
    within,
)
from uow import Database, current_unit
from uow.retry import Retry

pytestmark = pytest.mark.backends("pg18")


@pytest.mark.parametrize("how", HOWS)
async def test_L6_a_request_that_lost_is_run_again_whatever_the_app_made_of_it(
    backend: Backend, mode: Mode, database: Database, how: How, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = Flaky(failures=2)

    with caplog.at_level(logging.INFO, "uow"):
        answer = await request(database, mode, reacting(how, flaky), retry=QUICK)

    assert (answer.status, answer.json(), len(answer.messages)) == (201, 3, 2)
    assert flaky.attempts == [1, 2, 3]
    assert flaky.done == [3]
    assert names(backend) == ["attempt-3"]
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(" was")[0] for line in told] == ["POST /work: attempt 1", "POST /work: attempt 2"]
    backend.wait_until_at_rest()


@pytest.mark.parametrize(
    ("how", "status"),
    [("raise", 503), ("map", 409), ("swallow", 503), ("wrap", 500)],
)
async def test_L6_when_the_attempts_are_used_up_the_last_one_is_answered(
    backend: Backend, mode: Mode, database: Database, how: How, status: int
) -> None:
    """L3, L4, L9: as it would be without replay, with the answer of the app's own where it has one."""
    flaky = Flaky(failures=9)

    answer = await request(database, mode, reacting(how, flaky), retry=Retry(attempts=3, first_pause=0.0))

    assert flaky.attempts == [1, 2, 3]
    assert (flaky.done, names(backend)) == ([], [])
    assert answer.status == status
    assert (type(answer.error) is LookupError) is (how == "wrap")
    if status == 503:
        assert answer.json()["type"] == "/problems/serialization-failure"
        assert int(answer.headers["retry-after"]) > 0
    backend.wait_until_at_rest()


async def test_L6_one_attempt_is_no_replay(backend: Backend, mode: Mode, database: Database) -> None:
    flaky = Flaky()
    answer = await request(database, mode, flaky, retry=Retry(attempts=1))
    assert (answer.status, flaky.attempts) == (503, [1])


async def test_L6_a_commit_that_lost_is_run_again(backend: Backend, mode: Mode, database: Database) -> None:
    """A deferred trigger fails as SERIALIZABLE does: when everything seemed to be done."""
    flaky = Flaky(fail_commits(backend, until=2), failures=9)

    answer = await request(database, mode, flaky, retry=QUICK)

    assert (answer.status, answer.json()) == (201, 3)
    assert (flaky.done, names(backend)) == ([3], ["attempt-3"])
    backend.wait_until_at_rest()


async def test_L6_of_two_requests_in_a_deadlock_both_succeed(
    backend: Backend, mode: Mode, database: Database
) -> None:
    for name in ("a", "b"):
        backend.execute("INSERT INTO items (name) VALUES (?)", (name,))
    tasks, threads = asyncio.Barrier(2), threading.Barrier(2)
    attempts: list[int] = []

    def meet() -> None:
        if mode == "async":
            await_only(tasks.wait())
        else:
            threads.wait(LIMIT)

    def work(first: str, second: str) -> Any:
        def locks(session: Session) -> None:
            attempts.append(current_unit().attempt)
            run("SET LOCAL deadlock_timeout = '10ms'")(session)
            run("UPDATE items SET stock = stock + 1 WHERE name = :name", name=first)(session)
            if current_unit().attempt == 1:
                meet()
            run("UPDATE items SET stock = stock + 1 WHERE name = :name", name=second)(session)

        return request(database, mode, locks, retry=QUICK)

    answers = await asyncio.gather(work("a", "b"), work("b", "a"))

    assert [answer.status for answer in answers] == [201, 201]
    assert sorted(attempts) == [1, 1, 2]
    assert backend.query("SELECT stock FROM items") == [(2,), (2,)]
    backend.wait_until_at_rest()


async def test_L6_a_lock_that_comes_too_late_is_waited_for_again(
    backend: Backend, mode: Mode, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(backend, PostgresBackend)
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def work(session: Session) -> None:
        run("SET LOCAL lock_timeout = '20ms'")(session)
        run("UPDATE items SET stock = stock + 1 WHERE name = 'nut'")(session)

    flaky = Flaky(work, failures=9)
    with backend.server.connect(backend.dbname) as other:
        hold(other)
        at_pause(monkeypatch, lambda attempt: other.rollback() if attempt == 2 else None)
        answer = await request(database, mode, flaky, retry=QUICK)

    assert (answer.status, flaky.done) == (201, [3])
    assert backend.query("SELECT name, stock FROM items ORDER BY id") == [("nut", 1), ("attempt-3", 0)]


def hold(other: Connection[TupleRow]) -> None:
    other.autocommit = False
    other.execute("UPDATE items SET stock = 7 WHERE name = 'nut'")


@pytest.mark.parametrize("flushed", [True, False], ids=["in the handler", "at settle"])
async def test_L6_what_another_one_changed_meanwhile_is_read_again(
    backend: Backend, mode: Mode, database: Database, flushed: bool
) -> None:
    backend.execute("INSERT INTO items (name, stock) VALUES ('nut', 5)")

    def work(session: Session) -> None:
        item = session.get_one(Item, 1)
        if current_unit().attempt == 1:
            backend.execute("UPDATE items SET stock = 50, version = version + 1")
        item.stock += 1
        if flushed:
            session.flush()

    answer = await request(database, mode, work, retry=QUICK)

    assert answer.status == 201
    assert backend.query("SELECT stock, version FROM items") == [(51, 3)]


async def test_L6_a_server_that_takes_no_writes_any_more_is_left_with_the_whole_pool(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    """25006 on a writer: after a failover the old primary is read-only, and every connection leads to it."""
    make_tables(backend)
    database = connect(backend, pool_size=2, max_overflow=0)
    pids: list[int] = []

    def note(session: Session) -> None:
        pids.append(int(session.execute(text("SELECT pg_backend_pid()")).scalar_one()))

    def fails(session: Session) -> None:
        note(session)
        run("SET TRANSACTION READ ONLY")(session)
        insert("never")(session)

    async with database.new_unit() as first, database.new_unit() as second:
        if mode == "async":
            for unit in (first, second):
                await unit.session.run_sync(note)
    old = set(pids)
    flaky = Flaky(fails)
    answer = await request(database, mode, flaky, retry=QUICK)
    failed_on = pids[-1]
    await within(database, mode, note)

    assert (answer.status, flaky.done, names(backend)) == (201, [2], ["attempt-2"])
    assert pids[-1] not in {failed_on, *old}


async def test_L7_a_connection_that_was_lost_under_way_costs_no_answer(
    backend: Backend, mode: Mode, database: Database
) -> None:
    flaky = Flaky(terminated(backend), failures=2)

    answer = await request(database, mode, flaky, retry=QUICK)

    assert (answer.status, answer.json(), flaky.done) == (201, 3, [3])
    assert names(backend) == ["attempt-3"]
    backend.wait_until_at_rest()


async def test_L7_a_request_that_costs_its_connection_each_time_is_not_run_for_ever(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """It may be what ends the server's processes, and each time takes those of all others along."""
    flaky = Flaky(terminated(backend), failures=9)
    answer = await request(database, mode, flaky, retry=Retry(attempts=3, first_pause=0.0))

    assert flaky.attempts == [1, 2, 3]
    assert (answer.status, answer.json()["type"]) == (503, "/problems/connection-lost")
    assert int(answer.headers["retry-after"]) > 0
    assert names(backend) == []


async def test_L6_no_retry_in_a_block_is_meant_for_the_request_around_it(
    backend: Backend, mode: Mode, database: Database
) -> None:
    charged: list[str] = []

    def work(session: Session) -> None:
        with database.new_unit():
            current_unit().no_retry()
        charged.append("once")
        terminated(backend)(session)

    assert (await request(database, mode, work, retry=Retry(first_pause=0.0))).status == 503
    assert charged == ["once"]


async def test_L7_no_connection_to_be_had_is_tried_for_a_while(
    backend: Backend, mode: Mode, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database lets nobody in, as one does that is starting."""
    assert isinstance(backend, PostgresBackend)
    make_tables(backend)
    database = connect(backend)
    server, closed = backend.server, f'ALTER DATABASE "{backend.dbname}" ALLOW_CONNECTIONS'
    server.query("postgres", f"{closed} false")

    def opens(attempt: int) -> None:
        if attempt == 3:
            server.query("postgres", f"{closed} true")

    at_pause(monkeypatch, opens)
    flaky = Flaky(failures=0)
    answer = await request(database, mode, flaky, retry=Retry(attempts=2, seconds=LIMIT))

    assert (answer.status, flaky.attempts, flaky.done) == (201, [1, 2, 3, 4], [4])
    assert names(backend) == ["attempt-4"]


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize("how", HOWS)
async def test_L6_a_busy_database_is_asked_again(
    backend: Backend, mode: Mode, connect: Connect, how: How, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLITE_BUSY: another process has the write lock for longer than anybody waits."""
    assert isinstance(backend, SqliteBackend)
    make_tables(backend)
    other = backend.connect()
    other.execute("BEGIN IMMEDIATE")
    pauses: list[int] = []

    def at_second_pause(attempt: int) -> None:
        pauses.append(attempt)
        if attempt == 2:
            other.rollback()

    at_pause(monkeypatch, at_second_pause)
    flaky = Flaky(failures=0)
    database = connect(backend, pool_timeout=0.05)
    answer = await request(database, mode, reacting(how, flaky), retry=QUICK)
    other.close()

    assert (answer.status, answer.json()) == (201, 3)
    assert (pauses, flaky.done, names(backend)) == ([1, 2], [3], ["attempt-3"])
    backend.wait_until_at_rest()
