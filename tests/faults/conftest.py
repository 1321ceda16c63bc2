"""The tables of the fault tests' app, a server that runs it, and databases behind PgBouncer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.faults.app import schema
from tests.support.backends import Backend, Leg
from tests.support.pgbouncer import PgBouncer, PgBouncerBackend, pgbouncer_binary, why_there_is_none
from tests.support.postgres import PostgresServer, wheel_binaries
from tests.support.server import Serve, UvicornServer

Start = Callable[..., UvicornServer]
APP = "tests.faults.app:create_app"


@pytest.fixture
def tables(backend: Backend) -> None:
    for statement in schema(backend.dialect):
        backend.execute(statement)


@pytest.fixture
def server(tables: None, backend: Backend, serve: Serve) -> UvicornServer:
    """The app on an empty database. With uvicorn's shutdown bounded to one second."""
    return serve(APP, backend=backend, graceful_shutdown=1)


# PgBouncer


DRIVERS: dict[str, Leg] = {"asyncpg": "pg18", "psycopg": "pgsystem"}
"""The legs whose URLs name these drivers; the server behind them is one and the same."""

# psycopg can do without prepared statements; asyncpg names one for every statement, and a read that is not
# in a transaction may find itself on another connection when it is to be executed.
KEPT = {"asyncpg": {"max_prepared_statements": "200"}, "psycopg": {"max_prepared_statements": "0"}}


@pytest.fixture(scope="module")
def binary() -> Path:
    """The program; without one that can be used, every test that asks for it is skipped."""
    reason, found = why_there_is_none(), pgbouncer_binary()
    if reason is not None or found is None:
        pytest.skip(str(reason))
    return found


@pytest.fixture(scope="module")
def pooled_postgres(binary: Path) -> Iterator[PostgresServer]:
    """A server that these tests may stop, without a word to the others."""
    binaries = wheel_binaries()
    assert binaries is not None
    postgres = PostgresServer(binaries)
    postgres.start()
    yield postgres
    postgres.remove()


MakePooled = Callable[..., PgBouncerBackend]


@pytest.fixture
def make(binary: Path, pooled_postgres: PostgresServer, tmp_path: Path) -> Iterator[MakePooled]:
    """Makes an empty database behind a PgBouncer of its own, with these settings beside the documented."""
    made: list[PgBouncerBackend] = []

    def make_one(leg: Leg, settings: Mapping[str, str]) -> PgBouncerBackend:
        pgbouncer = PgBouncer(binary, pooled_postgres, folder=tmp_path, settings=settings).start()
        made.append(PgBouncerBackend(leg, pooled_postgres, tmp_path, pgbouncer))
        return made[-1]

    yield make_one
    for backend in made:
        backend.drop()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)
