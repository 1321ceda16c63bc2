"""The error table: what the database says, and what the client is told of it (L5, L6, L26)."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.support.asgi import Recorder
from tests.support.backends import Backend, Mode, PostgresBackend, SqliteBackend
from tests.support.processes import free_port
from tests.support.wait import LIMIT
from tests.uow.conftest import Connect
from tests.uow.units import Item, Work, count, elsewhere, in_thread, insert, names, request, run, within
from uow import Database, errors
from uow.problems import MISUSES, PROBLEMS, Condition, Problem, misuse_of, problem_response

Expected = tuple[str, int, str | None]


def assert_problem(recorder: Recorder, name: str, status: int, retry_after: str | None = None) -> None:
    """One answer, a complete problem document (RFC 9457, section 3.1) about a unit that was rolled back."""
    assert recorder.error is None
    assert len(recorder.starts) == 1
    assert recorder.complete
    assert recorder.headers["content-type"] == "application/problem+json"
    assert recorder.headers.get("retry-after") == retry_after
    document = recorder.json()
    assert (recorder.status, document["status"]) == (status, status)
    assert document["type"] == f"/problems/{name}"
    assert document["title"]
    assert document["instance"] == "/work"
    assert document["outcome"] == "rolled_back"


def stale(session: Session) -> None:
    item = session.get_one(Item, 1)
    session.execute(text("UPDATE items SET version = 7"))
    item.stock = 3
    session.flush()


ON_EVERY_ENGINE: dict[str, tuple[Work[Any], Expected]] = {
    "unique": (insert("nut"), ("unique-violation", 409, None)),
    "primary key": (run("INSERT INTO items (id, name) VALUES (1, 'x')"), ("unique-violation", 409, None)),
    "foreign key": (run("INSERT INTO notes (item) VALUES (99)"), ("foreign-key-violation", 409, None)),
    "deferred foreign key": (
        run("INSERT INTO notes (later) VALUES (99)"), ("foreign-key-violation", 409, None)
    ),
    "check": (run("UPDATE items SET stock = -1"), ("check-violation", 422, None)),
    "not null": (run("INSERT INTO items (name) VALUES (NULL)"), ("database-error", 500, None)),
    "no such table": (run("SELECT * FROM nowhere"), ("database-error", 500, None)),
    "stale version": (stale, ("stale-version", 409, None)),
}  # fmt: skip


@pytest.mark.parametrize("case", ON_EVERY_ENGINE)
async def test_what_the_database_refuses_is_one_problem_document_and_nothing_is_kept(
    backend: Backend, mode: Mode, database: Database, case: str
) -> None:
    """L5: at a statement, at a flush and at COMMIT."""
    work, expected = ON_EVERY_ENGINE[case]
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def both(session: Session) -> None:
        session.execute(text("INSERT INTO items (name) VALUES ('bolt')"))
        work(session)

    recorder = await request(database, mode, both)

    assert_problem(recorder, *expected)
    assert names(backend) == ["nut"]
    assert (await request(database, mode, insert("next"))).status == 201
    assert names(backend) == ["nut", "next"]


SQLSTATES: dict[str, Expected] = {
    "40001": ("serialization-failure", 503, "1"),
    "40P01": ("serialization-failure", 503, "1"),
    "55P03": ("lock-timeout", 503, "1"),
    "57014": ("time-is-up", 503, "1"),
    "25P03": ("time-is-up", 503, "1"),
    "25P04": ("time-is-up", 503, "1"),
    "23P01": ("unique-violation", 409, None),
    "22012": ("database-error", 500, None),
    "25006": ("read-only-database", 503, "1"),
    "53100": ("storage-full", 503, "5"),
    "53300": ("database-unavailable", 503, "1"),
    "57P01": ("connection-lost", 503, "1"),
    "57P02": ("connection-lost", 503, "1"),
    "57P03": ("database-unavailable", 503, "1"),
    "08006": ("connection-lost", 503, "1"),
    "XX000": ("database-error", 500, None),
}


@pytest.mark.backends("pg18", "pgsystem")
async def test_each_sqlstate_has_its_problem(backend: Backend, mode: Mode, database: Database) -> None:
    for state, expected in SQLSTATES.items():
        raised = f"DO $$ BEGIN RAISE EXCEPTION 'told to' USING ERRCODE = '{state}'; END $$"

        assert_problem(await request(database, mode, run(raised)), *expected)


@pytest.mark.backends("pg18")
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("server login has been failing (server_login_retry)", "database-unavailable"),
        ("expected another message", "connection-lost"),
    ],
)
async def test_a_pooler_without_a_server_is_a_database_that_is_away(
    mode: Mode, database: Database, words: str, name: str
) -> None:
    raised = f"DO $$ BEGIN RAISE EXCEPTION '{words}' USING ERRCODE = '08P01'; END $$"
    assert_problem(await request(database, mode, run(raised)), name, 503, "1")


@pytest.mark.backends("pg18", "pgsystem")
@pytest.mark.parametrize(
    ("setting", "name"), [("lock_timeout", "lock-timeout"), ("statement_timeout", "time-is-up")]
)
async def test_a_wait_that_is_over_is_503(
    backend: Backend, mode: Mode, database: Database, setting: str, name: str
) -> None:
    assert isinstance(backend, PostgresBackend)
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def work(session: Session) -> None:
        session.execute(text(f"SET LOCAL {setting} = '50ms'"))
        session.execute(text("UPDATE items SET stock = 1"))

    with backend.server.connect(backend.dbname) as holder, holder.transaction():
        holder.execute("UPDATE items SET stock = 2")
        recorder = await request(database, mode, work)

    assert_problem(recorder, name, 503, "1")


@pytest.mark.backends("pg18", "pgsystem")
async def test_a_lost_update_at_a_higher_isolation_level_is_503(
    backend: Backend, mode: Mode, database: Database
) -> None:
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def work(session: Session) -> None:
        session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        count(session)
        backend.execute("UPDATE items SET stock = 2")
        session.execute(text("UPDATE items SET stock = 1"))

    assert_problem(await request(database, mode, work), "serialization-failure", 503, "1")
    assert backend.query("SELECT stock FROM items") == [(2,)]


@pytest.mark.backends("pg18", "pgsystem")
async def test_a_connection_that_dies_before_commit_is_503(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L7."""
    assert isinstance(backend, PostgresBackend)

    def work(session: Session) -> None:
        insert("lost")(session)
        assert backend.terminate_all_backends() == 1
        count(session)

    assert_problem(await request(database, mode, work), "connection-lost", 503, "1")
    assert names(backend) == []
    assert (await request(database, mode, insert("next"))).status == 201


@pytest.mark.backends("pg18")
@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
async def test_a_server_that_is_not_there_is_503(
    backend: Backend, mode: Mode, connect: Connect, swallowed: bool
) -> None:
    """L26, also where the handler went on and answered 201."""
    database = connect(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")

    def work(session: Session) -> None:
        try:
            count(session)
        except Exception:
            if not swallowed:
                raise

    assert_problem(await request(database, mode, work), "database-unavailable", 503, "1")


async def test_a_wait_for_the_pool_that_is_over_is_503_with_retry_after(
    backend: Backend, mode: Mode, connect: Connect, database: Database
) -> None:
    """L26: nothing was begun, and the pool works once it has a connection to give."""
    small = connect(backend, pool_size=1, max_overflow=0, pool_timeout=0.05)
    held, asked = threading.Event(), threading.Event()

    def hold(session: Session) -> None:
        insert("holder")(session)
        held.set()
        assert asked.wait(LIMIT)

    if mode == "sync":
        holder = asyncio.ensure_future(within(small, mode, hold))
        assert await in_thread(held.wait, LIMIT)
        recorder = await request(small, mode, insert("waiter"))
        asked.set()
        await holder
    else:
        async with small.new_unit() as unit:
            await unit.session.run_sync(insert("holder"))
            recorder = await elsewhere(request(small, mode, insert("waiter")))

    assert_problem(recorder, "database-unavailable", 503, "1")
    assert names(backend) == ["holder"]
    assert (await request(small, mode, insert("next"))).status == 201


def driver_of(session: Session) -> Any:
    """The driver's own connection."""
    return session.connection().connection.driver_connection


def interrupted(session: Session) -> None:
    driver = driver_of(session)
    driver.set_progress_handler(lambda: 1, 1)
    try:
        count(session)
    finally:
        driver.set_progress_handler(None, 0)


def disk_full(session: Session) -> None:
    session.execute(text("PRAGMA max_page_count = 1"))
    session.execute(text("CREATE TABLE big AS SELECT zeroblob(2000000)"))


def table_in_use(session: Session) -> None:
    rows = session.connection().connection.cursor()
    rows.execute("SELECT * FROM items")
    session.execute(text("DROP TABLE items"))


def switched_to_reading(session: Session) -> None:
    session.execute(text("PRAGMA query_only = ON"))
    insert("never")(session)


ON_SQLITE: dict[str, tuple[Work[Any], Expected]] = {
    "full disk": (disk_full, ("storage-full", 503, "5")),
    "read-only": (switched_to_reading, ("read-only-database", 503, "1")),
    "too big": (run("SELECT zeroblob(2000000000)"), ("database-error", 500, None)),
    "mismatch": (run("INSERT INTO items (id, name) VALUES ('x', 'y')"), ("database-error", 500, None)),
}


@pytest.mark.parametrize("case", ON_SQLITE)
@pytest.mark.backends("sqlite")
async def test_what_only_sqlite_says_has_its_problem(
    backend: Backend, mode: Mode, database: Database, case: str
) -> None:
    work, expected = ON_SQLITE[case]
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    assert_problem(await request(database, mode, work), *expected)


@pytest.mark.backends("sqlite")
@pytest.mark.modes("sync")
@pytest.mark.parametrize(
    ("work", "name"), [(interrupted, "time-is-up"), (table_in_use, "serialization-failure")]
)
async def test_what_only_the_thread_of_a_connection_can_bring_about_has_its_problem(
    backend: Backend, mode: Mode, database: Database, work: Work[None], name: str
) -> None:
    backend.execute("INSERT INTO items (name) VALUES ('nut')")
    backend.execute("INSERT INTO items (name) VALUES ('bolt')")

    assert_problem(await request(database, mode, work), name, 503, "1")


@pytest.mark.parametrize("connected", [False, True])
async def test_another_process_that_writes_to_the_file_is_503(
    sqlite: SqliteBackend, mode: Mode, connect: Connect, connected: bool
) -> None:
    """L6: SQLITE_BUSY, once the bounded wait is over, at BEGIN or earlier; the writer works again."""
    sqlite.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)")
    database = connect(sqlite, pool_timeout=0.05)
    if connected:
        await within(database, mode, count)
    other = sqlite.connect()
    other.execute("BEGIN IMMEDIATE")

    recorder = await request(database, mode, insert("late"))

    other.close()
    assert_problem(recorder, "serialization-failure", 503, "1")
    assert (await request(database, mode, insert("next"))).status == 201
    assert names(sqlite) == ["next"]


async def test_a_file_that_cannot_be_opened_is_503(mode: Mode, tmp_path: Any, connect: Connect) -> None:
    database = connect(f"sqlite:///{tmp_path}/no/such/folder.db")

    assert_problem(await request(database, mode, count), "database-unavailable", 503, "1")


async def test_errors_of_others_are_not_the_databases(sqlite: SqliteBackend, connect: Connect) -> None:
    """L4: an exception that the database has not caused goes to the app and the server unchanged."""
    database = connect(sqlite)

    def work(_: Session) -> None:
        raise LookupError("of the handler's own")

    recorder = await request(database, "async", work)

    assert isinstance(recorder.error, LookupError)
    assert recorder.status == 500
    assert recorder.headers["content-type"].startswith("text/plain")
    assert database.condition(LookupError()) is None


def test_an_error_of_the_driver_without_a_code_is_still_the_databases(sqlite: SqliteBackend) -> None:
    assert Database(sqlite.database_url).condition(sqlite3.ProgrammingError("closed")) is Condition.OTHER


async def test_an_error_that_never_left_sqlalchemy_dooms_nothing(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L9 speaks of what the database has refused; a missing parameter never reached it."""

    def work(session: Session) -> None:
        insert("kept")(session)
        with pytest.raises(Exception, match="value is required for bind parameter"):
            session.execute(text("INSERT INTO items (name) VALUES (:name)"))

    await within(database, mode, work)

    assert names(backend) == ["kept"]


def test_a_problem_document_has_the_members_of_rfc_9457() -> None:
    problem = Problem("out-of-stock", "Out of stock", 409)

    response = problem_response(problem, detail="2 nuts, 3 wanted", instance="/orders/1", short=[{"item": 1}])

    assert problem.type == "/problems/out-of-stock"
    assert (response.status_code, response.media_type) == (409, "application/problem+json")
    assert "retry-after" not in response.headers
    assert json.loads(bytes(response.body)) == {
        "type": "/problems/out-of-stock",
        "title": "Out of stock",
        "status": 409,
        "detail": "2 nuts, 3 wanted",
        "instance": "/orders/1",
        "short": [{"item": 1}],
    }


def test_a_problem_document_says_when_to_try_again_unless_its_headers_do() -> None:
    problem = Problem("busy", "Busy: ä", 503, retry_after=7)

    by_itself = problem_response(problem)
    told = problem_response(problem, headers={"Retry-After": "9", "X-Other": "1"})

    assert json.loads(bytes(by_itself.body)) == {"type": "/problems/busy", "title": "Busy: ä", "status": 503}
    assert by_itself.headers["retry-after"] == "7"
    assert (told.headers["retry-after"], told.headers["x-other"]) == ("9", "1")


@pytest.mark.parametrize("problem", [*PROBLEMS.values(), *MISUSES.values()], ids=lambda problem: problem.name)
def test_no_503_is_without_a_time_to_try_again(problem: Problem) -> None:
    assert (problem.status == 503) is (problem.retry_after is not None)
    assert problem.status in {409, 422, 500, 503}


def test_every_condition_has_a_problem_and_every_error_of_ours_is_one() -> None:
    assert set(PROBLEMS) == set(Condition)
    for name in errors.__all__:
        assert misuse_of(getattr(errors, name)("what")).title


def test_an_error_made_from_one_of_ours_has_the_problem_of_its_base() -> None:
    class Closed(errors.UnitOfWorkClosed):
        """Made by a user of the library."""

    assert misuse_of(Closed()).name == "unit-closed"


def test_what_may_be_tried_again_is_known_to_be_aborted() -> None:
    retryable = {condition.name for condition in Condition if condition.known_aborted}

    assert retryable == {"SERIALIZATION", "LOCK_TIMEOUT", "CONNECTION_LOST", "UNAVAILABLE"}
