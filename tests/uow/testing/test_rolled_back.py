"""Each test in a transaction that is rolled back at its end, commits of the app included."""

from __future__ import annotations

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.support.asgi import run_asgi
from tests.support.backends import Backend, Mode, PostgresBackend
from tests.uow.conftest import Connect
from tests.uow.testing.apps import app_with
from tests.uow.testing.clients import TestClient, asgi_client
from tests.uow.units import Told, app_of, count, endpoint, in_thread, insert, make_tables, names, run, within
from uow import Database
from uow.testing import rolled_back


async def test_what_the_app_commits_is_seen_by_the_app_and_by_nobody_else(
    backend: Backend, mode: Mode, database: Database
) -> None:
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        assert (await client.post("/nut")).status_code == 200
        assert (await client.post("/bolt")).status_code == 200
        assert (await client.get("/names")).json() == ["bolt", "nut"]
        assert await within(database, mode, count) == 2
        probe.assert_committed(3)
        assert names(backend) == []

    assert names(backend) == []
    assert await within(database, mode, count) == 0
    backend.wait_until_at_rest()


def test_a_test_client_runs_the_app_in_loops_of_its_own(backend: Backend, mode: Mode, shop: Database) -> None:
    """A loop for each request without `with`, and one for all of them inside."""
    app = app_with(shop, mode)
    with rolled_back(shop):
        client = TestClient(app)
        assert client.post("/nut").status_code == 200
        assert client.get("/names").json() == ["nut"]
        with client:
            assert client.post("/bolt").status_code == 200
            assert client.get("/names").json() == ["bolt", "nut"]
        assert client.get("/names").json() == ["bolt", "nut"]
    with TestClient(app) as client, rolled_back(shop):
        assert client.get("/count").json() == 0
        assert client.post("/nut").status_code == 200

    assert names(backend) == []


@pytest.mark.backends("pg18")
async def test_a_deadline_leaves_the_connection_of_the_test_alone(
    backend: Backend, database: Database
) -> None:
    def slow(session: Session) -> None:
        insert("late")(session)
        session.execute(text("SELECT pg_sleep(0.6)"))

    async with rolled_back(database):
        late = await run_asgi(app_of(endpoint("sync", slow), database, deadline=0.2), "POST", "/work")
        assert (late.status, late.json()["type"]) == (503, "/problems/time-is-up")
        quick = app_of(endpoint("sync", insert("next")), database, deadline=60.0)
        assert (await run_asgi(quick, "POST", "/work")).status == 201
        assert await within(database, "sync", count, read_only=True) == 1
        assert await within(database, "sync", lambda s: s.scalar(text("SHOW statement_timeout"))) == "0"

    assert names(backend) == []


async def test_one_block_after_another_begins_with_the_same_database(
    backend: Backend, mode: Mode, database: Database
) -> None:
    await within(database, mode, insert("kept"))
    for _ in range(3):
        with rolled_back(database):
            await within(database, mode, insert("mine"))
            assert await within(database, mode, count, read_only=True) == 2
    await within(database, mode, insert("kept as well"))

    assert names(backend) == ["kept", "kept as well"]


async def test_what_was_rolled_back_is_gone_and_what_came_before_stays(
    mode: Mode, database: Database
) -> None:
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        await client.post("/nut")
        assert (await client.post("/nut")).status_code == 409
        with pytest.raises(LookupError):
            await client.post("/broken")
        assert (await client.post("/part")).status_code == 200
        assert (await client.post("/object")).status_code == 200

        assert (await client.get("/names")).json() == ["kept", "nut", "object"]
        assert [unit.outcome for unit in probe.units] == [
            "committed", "rolled_back", "rolled_back", "committed", "committed", "committed",
        ]  # fmt: skip


async def test_readers_see_what_the_test_has_written_and_cannot_write(mode: Mode, database: Database) -> None:
    """L25, by the database itself, and after it as before."""
    async with rolled_back(database), asgi_client(app_with(database, mode)) as client:
        await client.post("/nut")
        for _ in range(2):
            refused = await client.get("/bolt")
            assert refused.status_code == 500
            assert refused.json()["type"] == "/problems/read-only-unit"
            assert (await client.get("/object")).json()["type"] == "/problems/read-only-unit"
            assert (await client.get("/names")).json() == ["nut"]
        assert (await client.post("/bolt")).status_code == 200


async def test_a_reader_may_send_many_statements(mode: Mode, database: Database) -> None:
    def twice(session: Session) -> list[int]:
        return [count(session), count(session)]

    async with rolled_back(database):
        await within(database, mode, insert("nut"))
        assert await within(database, mode, twice, read_only=True) == [1, 1]


@pytest.mark.parametrize("options", [{}, {"snapshot": True}], ids=["plain", "snapshot"])
async def test_readers_stream_and_set_savepoints(
    mode: Mode, database: Database, options: dict[str, bool]
) -> None:
    app = app_with(database, mode)
    async with rolled_back(database), asgi_client(app) as client:
        await client.post("/nut")
        await client.post("/bolt")
        assert (await client.get("/stream")).json() == ["bolt", "nut"]
        assert (await client.get("/savepoint")).json() == 2
        assert await within(database, mode, count, read_only=True, **options) == 2
        with pytest.raises(Exception, match="read-only"):
            await within(database, mode, insert("x"), read_only=True, **options)
        assert (await client.post("/stream")).json() == ["bolt", "nut"]


async def test_a_deferred_constraint_is_checked_at_the_commit_of_the_app(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L5: and not at the end of the test, where nobody would see it."""
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        refused = await client.post("/odds")
        assert refused.json()["type"] == "/problems/foreign-key-violation"
        probe.assert_rolled_back(name="POST /odds")
        assert (await client.post("/pair")).status_code == 200
        assert (await client.post("/odds")).status_code == 200  # 77 is there now
        await within(database, mode, run("DELETE FROM notes"))
        await within(database, mode, run("DELETE FROM items"))
        assert (await client.post("/odds")).status_code == 409

    assert backend.count("notes") == 0


async def test_constraints_are_as_they_were_declared_after_a_commit(
    postgres: PostgresBackend, mode: Mode, connect: Connect
) -> None:
    make_tables(postgres)
    postgres.execute(
        "CREATE TABLE pairs (a INTEGER, CONSTRAINT once UNIQUE (a) DEFERRABLE INITIALLY IMMEDIATE)"
    )
    database = connect(postgres)
    twice = run("INSERT INTO pairs (a) VALUES (1), (1)")
    async with rolled_back(database):
        await within(database, mode, insert("nut"))
        with pytest.raises(Exception, match="once"):
            await within(database, mode, lambda session: (twice(session), pytest.fail("it was deferred")))


async def test_the_observer_is_told_what_it_is_told_in_production(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    make_tables(backend)
    told = Told()
    database = connect(backend, observer=told)
    async with rolled_back(database):
        await within(database, mode, insert("nut"), name="one")
    assert told.outcomes == [("one", "committed")]
    assert {name for name, _ in told.statements} == {"one"}


async def test_other_isolation_levels_run_at_that_of_the_test(mode: Mode, database: Database) -> None:
    async with rolled_back(database):
        await within(database, mode, insert("nut"), isolation="SERIALIZABLE")
        assert await within(database, mode, count, isolation="REPEATABLE READ") == 1


async def test_units_take_their_turn(mode: Mode, database: Database) -> None:
    async with rolled_back(database, wait=30) as probe, asgi_client(app_with(database, mode)) as client:
        async with anyio.create_task_group() as group:
            for path in ["/nut", "/bolt", "/object", "/part", "/pair", "/count"]:
                group.start_soon(client.post, path)
                group.start_soon(client.get, "/names")
        assert (await client.get("/names")).json() == ["bolt", "kept", "late", "nut", "object"]
        probe.assert_committed(6)


async def test_tables_made_in_a_test_go_with_it(backend: Backend, mode: Mode, database: Database) -> None:
    async with rolled_back(database):
        await within(database, mode, run("CREATE TABLE mine (id INTEGER)"))
        await within(database, mode, run("INSERT INTO mine VALUES (1)"))
        await within(database, mode, run("DROP TABLE notes"))
    assert backend.count("notes") == 0
    with pytest.raises(Exception, match="mine"):
        backend.count("mine")


async def test_an_app_that_disposes_of_its_database_ends_nothing(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    make_tables(backend)
    database = connect(backend)
    await within(database, mode, insert("kept"))
    async with rolled_back(database):
        async with database:  # as a lifespan does
            await within(database, mode, insert("mine"))
        assert await within(database, mode, count) == 2
        await in_thread(database.dispose_sync)
        assert await within(database, mode, count, read_only=True) == 2
    assert names(backend) == ["kept"]
    await within(database, mode, run("UPDATE items SET name = 'changed'"))
    assert names(backend) == ["changed"]


@pytest.mark.backends("sqlite")
async def test_a_database_in_memory(backend: Backend, mode: Mode, connect: Connect) -> None:
    """Disposed of in the test, as by a lifespan, it is the test's to its end."""
    database = connect("sqlite://")
    async with rolled_back(database):
        async with database:
            await within(database, mode, run("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)"))
        await within(database, mode, insert("mine"))
        assert await within(database, mode, count, read_only=True) == 1


async def test_a_statement_sent_past_sqlalchemy_is_in_the_transaction_too(
    backend: Backend, connect: Connect
) -> None:
    make_tables(backend)
    database = connect(backend)
    async with rolled_back(database):
        async with database.new_unit() as unit:
            connection = await unit.session.connection()
            await connection.execute(text("SELECT 1"))
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            await raw.execute("INSERT INTO items (name) VALUES ('raw')")
        assert await within(database, "async", count) == 1
    assert names(backend) == []
