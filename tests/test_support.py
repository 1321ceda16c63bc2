"""The ground that the other tests stand on: its servers, databases and markers."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import anyio
import psycopg
import pytest
from sqlalchemy import create_engine, insert, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.backends import Backend, Mode, PostgresBackend, SqliteBackend
from tests.support.postgres import Identity, PostgresServer, usual_identity, wheel_binaries
from tests.support.processes import is_running, python_environment
from tests.support.sample_app import items, schema
from tests.support.server import ROOT
from tests.support.wait import NeverHappened, wait_until

IDENTITIES: set[Identity] = {usual_identity(), "child" if os.geteuid() == 0 else usual_identity()}


# Waiting


def test_waiting_for_what_never_happens_says_what_it_was() -> None:
    with pytest.raises(NeverHappened, match="pigs fly"):
        wait_until(lambda: False, "pigs fly", limit=0.01)


# Databases


@pytest.mark.parametrize("first", [True, False], ids=["one test", "the next test"])
def test_every_test_has_an_empty_database(backend: Backend, first: bool) -> None:
    backend.execute("CREATE TABLE only_mine (id INTEGER PRIMARY KEY)")
    assert backend.count("only_mine") == 0


def test_a_second_connection_sees_what_was_committed_and_nothing_else(items_table: Backend) -> None:
    engine = create_engine(items_table.url("sync"))
    with engine.connect() as connection:
        connection.execute(insert(items).values(name="50 % off"))
        assert items_table.count("items") == 0
        connection.commit()
    engine.dispose()
    rows = items_table.query("SELECT name FROM items WHERE name = ? AND name LIKE '50 %'", ["50 % off"])
    assert rows == [("50 % off",)]


def test_the_url_of_each_mode_opens_an_engine_of_that_mode(backend: Backend, mode: Mode) -> None:
    async def ask() -> int:
        engine = create_async_engine(backend.url("async"))
        async with engine.connect() as connection:
            found = (await connection.execute(text("SELECT 41 + 1"))).scalar_one()
        await engine.dispose()
        return int(found)

    if mode == "async":
        assert anyio.run(ask) == 42
    else:
        engine = create_engine(backend.url("sync"))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 41 + 1")).scalar_one() == 42
        engine.dispose()


@pytest.mark.modes("async")
def test_both_async_drivers_have_a_leg(backend: Backend, mode: Mode) -> None:
    drivers = {"sqlite": "aiosqlite", "pg18": "asyncpg", "pgsystem": "psycopg"}
    assert drivers[backend.name] in backend.url(mode)
    assert ("psycopg" in backend.database_url) == (backend.name == "pgsystem")


def test_an_open_writer_is_seen_until_it_ends(items_table: Backend) -> None:
    engine = create_engine(items_table.url("sync"))
    with engine.connect() as connection:
        connection.execute(insert(items).values(name="nut"))
        assert not items_table.write_lock_free()
        assert items_table.idle_in_transaction() == 1
    items_table.wait_until_at_rest()
    engine.dispose()


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_an_open_reader_of_sqlite_is_seen_as_well(
    sqlite: SqliteBackend, journal: str, checkpointed: bool
) -> None:
    sqlite.execute(f"PRAGMA journal_mode = {journal}; {schema('sqlite')}")
    with contextlib.closing(sqlite.connect()) as reader:
        if not checkpointed:
            # While this connection is open the log is kept, so that there is something in it.
            reader.execute("INSERT INTO items (name) VALUES ('nut')")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM items").fetchall()
        assert sqlite.idle_in_transaction() == 1
        assert sqlite.write_lock_free()
        reader.execute("ROLLBACK")
        assert sqlite.idle_in_transaction() == 0


def test_connections_are_counted_and_cut_but_not_those_of_the_tests(
    postgres: PostgresBackend,
) -> None:
    own = postgres.server.connect(postgres.dbname)
    app = psycopg.connect(postgres.server.url(postgres.dbname))
    assert postgres.connections() == 1
    assert postgres.terminate_all_backends() == 1
    assert postgres.connections() == 0
    with pytest.raises(psycopg.OperationalError):
        app.execute("SELECT 1")
    assert own.execute("SELECT 1").fetchone() == (1,)
    app.close()
    own.close()


def test_markers_choose_the_legs_and_modes(tmp_path: Path) -> None:
    probe = tmp_path / "test_probe.py"
    probe.write_text(
        "import pytest\n"
        "def test_all(backend, mode): pass\n"
        "@pytest.mark.backends('sqlite')\n"
        "def test_one(backend): pass\n"
        "@pytest.mark.modes('sync')\n"
        "def test_postgres(postgres, mode): pass\n"
        "@pytest.mark.parametrize('backend', ['pg18'], indirect=True)\n"
        "def test_own(backend): pass\n"
    )
    legs = ("sqlite", "pg18", "pgsystem")
    assert _collected(probe) == [
        *(f"test_all[{leg}-{mode}]" for leg in legs for mode in ("async", "sync")),
        "test_one[sqlite]",
        *(f"test_postgres[{leg}-sync]" for leg in legs[1:]),
        "test_own[pg18]",
    ]


def test_a_misspelt_leg_is_an_error(tmp_path: Path) -> None:
    probe = tmp_path / "test_probe.py"
    probe.write_text("import pytest\n@pytest.mark.backends('pg81')\ndef test_x(backend): pass\n")
    assert "pg81" in "".join(_collected(probe, expect=2))


def _collected(probe: Path, expect: int = 0) -> list[str]:
    options = ["--collect-only", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    told = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", str(ROOT / "pyproject.toml"), str(probe)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=python_environment(),
        check=False,
    )
    assert told.returncode == expect, told.stdout + told.stderr
    if expect:
        return [told.stdout + told.stderr]
    return [line.rpartition("::")[2] for line in told.stdout.splitlines() if "::" in line]


# PostgreSQL servers


def test_a_database_is_used_again_only_if_nothing_is_left_in_it(postgres: PostgresBackend) -> None:
    server = postgres.server
    name = server.create_database()
    server.query(name, "CREATE SCHEMA other; CREATE TABLE other.one (id SERIAL PRIMARY KEY)")
    server.query(name, "CREATE TABLE two (id INTEGER); CREATE TYPE mood AS ENUM ('fine')")
    forgotten = psycopg.connect(server.url(name))
    forgotten.execute("LOCK TABLE two")
    server.recycle_database(name)
    forgotten.close()
    assert server.create_database() == name
    found = "SELECT nspname FROM pg_namespace WHERE oid >= 16384"
    assert server.query(name, found) == [("public",)]
    server.query(name, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    server.recycle_database(name)
    assert server.create_database() != name


def test_a_server_comes_back_from_a_crash_with_what_was_committed(
    postgres: PostgresBackend,
) -> None:
    postgres.execute("CREATE TABLE kept (id INTEGER); INSERT INTO kept VALUES (1)")
    port = postgres.server.port
    postgres.server.restart(immediate=True)
    assert postgres.count("kept") == 1
    assert postgres.server.port == port
    assert "automatic recovery" in postgres.server.log()


def test_a_question_about_the_server_is_asked_again_where_its_connection_was_cut(
    postgres: PostgresBackend,
) -> None:
    assert postgres.connections() == 0
    cut = "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE datname = 'postgres'"
    assert postgres.query(cut) == [(True,)]
    assert postgres.connections() == 0


def test_a_server_that_a_test_has_stopped_is_there_for_the_next(postgres: PostgresBackend) -> None:
    postgres.server.stop()
    assert not postgres.server.running
    with pytest.raises(psycopg.OperationalError):
        postgres.query("SELECT 1")


@pytest.mark.parametrize("identity", sorted(IDENTITIES))
def test_a_server_of_ones_own_runs_without_root_and_leaves_nothing(identity: Identity) -> None:
    binaries = wheel_binaries()
    assert binaries is not None
    server = PostgresServer(binaries, settings={"fsync": "on"}, identity=identity)
    try:
        server.start()
        assert server.query("postgres", "SHOW fsync") == [("on",)]
        assert server.query("postgres", "SHOW server_encoding") == [("UTF8",)]
        pid = server.pid
    finally:
        server.remove()
    assert not server.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_taken_port_is_left_for_another(postgres: PostgresBackend) -> None:
    binaries = wheel_binaries()
    assert binaries is not None
    server = PostgresServer(binaries)
    server.port = postgres.server.port
    try:
        server.start()
        assert server.port != postgres.server.port
    finally:
        server.remove()


def test_a_killed_test_run_leaves_no_process_and_no_folder() -> None:
    program = (
        "from tests.support.postgres import PostgresServer, wheel_binaries\n"
        "server = PostgresServer(wheel_binaries()); server.start()\n"
        "print(server.pid, server.folder, flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        pid, folder = run.stdout.readline().split()
        run.kill()
    wait_until(lambda: not is_running(int(pid)), "the server is gone")
    wait_until(lambda: not Path(folder).exists(), "its folder is gone")
