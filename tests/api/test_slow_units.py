"""Units that are slow, and those that hold their connection for long, are in the log with their route."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from api.logging import RequestObserver
from api.migrations import migrate
from api.settings import LoggingSettings
from api.slow_units import observer_of
from tests.api.guarded import Keys
from tests.api.service import in_process, lines_in, new_backend, new_item
from tests.api.slow_app import GO_ON
from tests.support.backends import Backend, Leg, PostgresBackend, SqliteBackend
from tests.support.postgres import PostgresServers
from tests.support.server import Serve, UvicornServer
from tests.support.wait import wait_until

Lines = list[dict[str, Any]]

APP = "tests.api.slow_app:create_app"
OFF = "0"
NEVER = "3600"


@dataclass
class Standing:
    """The service with endpoints that stand still, and what it writes."""

    server: UvicornServer
    backend: Backend
    folder: Path

    def lines(self, event: str, name: str) -> Lines:
        """The lines of this event that speak of a path or a unit which ends in this name."""
        found = [line for line in lines_in(self.server.log()) if line["event"] == event]
        return [line for line in found if str(line.get("unit") or line.get("path")).endswith(name)]

    def has(self, event: str, name: str) -> Callable[[], bool]:
        return lambda: bool(self.lines(event, name))

    def let_go(self, name: str) -> None:
        (self.folder / name).touch()

    def visit(self, method: str, path: str, *, until: str) -> httpx.Response:
        """The answer; it is held back until this event of it was written."""
        name = path.rpartition("/")[2]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self.server.client().request, method, path)
            try:
                wait_until(lambda: bool(self.lines(until, name)) or answer.done(), f"{until!r} of {path}")
            finally:
                self.let_go(name)
            return answer.result()


@pytest.fixture
def standing(service_leg: Leg, tmp_path: Path, postgres_servers: PostgresServers) -> Iterator[Standing]:
    backend = new_backend(service_leg, tmp_path, postgres_servers)
    serve = Serve(tmp_path)
    env = {
        "UOW_DATABASE__URL": backend.database_url,
        "UOW_LOGGING__FORMAT": "json",
        "UOW_LOGGING__LONG_TRANSACTION": "0.05",
        "UOW_LOGGING__SLOW_UNIT": NEVER,
        GO_ON: str(tmp_path),
    }
    yield Standing(serve(APP, env=env), backend, tmp_path)
    serve.close()
    backend.drop()


def test_a_long_transaction_is_told_while_it_is_open_and_when_it_has_ended(standing: Standing) -> None:
    for name, method, route in (
        ("one", "POST", "/async/{name}"),
        ("two", "POST", "/sync/{name}"),
        ("three", "GET", "/reading/{name}"),
        ("four", "POST", "/blocking/{name}"),  # also where the event loop stands still
    ):
        path = route.format(name=name)
        answer = standing.visit(method, path, until="long transaction")
        assert answer.status_code == 200
        (told,) = standing.lines("long transaction", path)
        assert (told["level"], told["unit"], told["method"]) == ("warning", f"{method} {path}", method)
        assert (told["route"], told["request_id"]) == (route, answer.headers["x-request-id"])
        assert told["held_ms"] >= 50
        assert told["held_ms"] + told["pool_wait_ms"] == pytest.approx(told["duration_ms"], abs=0.01)
        assert told["statements"] >= 1
        assert "outcome" not in told
        wait_until(standing.has("request", path), "the request is over")
        (settled,) = standing.lines("slow unit", path)
        assert (settled["level"], settled["outcome"]) == ("warning", "committed")
        assert (settled["route"], settled["request_id"]) == (route, told["request_id"])
        assert settled["held_ms"] >= told["held_ms"]
        assert 0 < settled["database_ms"] <= settled["duration_ms"]


def test_the_unit_of_a_block_is_told_by_its_own_name(standing: Standing) -> None:
    answer = standing.visit("POST", "/unit/alone", until="long transaction")
    assert answer.status_code == 200
    (told,) = standing.lines("long transaction", "alone")
    assert (told["unit"], told["route"]) == ("job alone", "/unit/{name}")
    assert told["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("service_leg", ["pg18", "pgsystem"], indirect=True)
def test_one_that_waits_for_a_lock_is_told_while_it_waits(standing: Standing) -> None:
    """Its first statement has not come back, so nothing but its connection tells of it.

    A writer of SQLite has its lock before it has a transaction.
    """
    backend = standing.backend
    assert isinstance(backend, PostgresBackend)
    migrate(backend.database_url)
    item = new_item(standing.server.client())
    path = f"/items/{item}/receipts"
    with ThreadPoolExecutor(1) as pool, backend.server.connect(backend.dbname) as other:
        with other.transaction():
            other.execute("SELECT id FROM items FOR UPDATE")
            answer = pool.submit(standing.server.client().post, path, json={"quantity": 1})
            wait_until(standing.has("long transaction", path), "it is told")
        assert answer.result().status_code == 201
    (told,) = standing.lines("long transaction", path)
    assert told["route"] == "/items/{item_id}/receipts"


def test_one_that_gets_no_connection_in_time_is_slow_as_well(standing: Standing) -> None:
    server = standing.server
    server.env |= {
        "UOW_LOGGING__SLOW_UNIT": "0.1",
        "UOW_DATABASE__POOL_SIZE": "1",
        "UOW_DATABASE__POOL_TIMEOUT": "0.2",
    }
    server.restart()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.client().post, "/async/first")
        try:
            wait_until(standing.has("long transaction", "first"), "the first has the only connection")
            answer = server.client().post(
                "/sync/second" if standing.backend.name == "sqlite" else "/async/second"
            )
        finally:
            standing.let_go("first")
        assert first.result().status_code == 200
    assert answer.status_code == 503
    (told,) = standing.lines("slow unit", "second")
    assert (told["outcome"], told["request_id"]) == ("rolled_back", answer.headers["x-request-id"])
    assert told["duration_ms"] >= 100
    assert "held_ms" not in told


@pytest.mark.parametrize("service_leg", ["sqlite", "pg18"], indirect=True)
def test_a_unit_that_is_neither_leaves_no_warning(standing: Standing) -> None:
    server = standing.server
    for slow, told in (("0.000001", 1), (NEVER, 0), (OFF, 0)):
        long = OFF if slow == OFF else NEVER
        server.env |= {"UOW_LOGGING__SLOW_UNIT": slow, "UOW_LOGGING__LONG_TRANSACTION": long}
        server.restart()
        for mode in ("async", "sync"):
            path = f"/{mode}/{told}-{slow}"
            standing.let_go(path.rpartition("/")[2])
            assert server.client().post(path).status_code == 200
            wait_until(standing.has("request", path), "the request is over")
            assert len(standing.lines("slow unit", path)) == told
            assert standing.lines("long transaction", path) == []


async def test_the_line_names_whose_key_it_was(tmp_path: Path) -> None:
    keys = Keys()
    sections: dict[str, dict[str, Any]] = {
        "database": {"url": SqliteBackend(tmp_path).database_url},
        "logging": {"slow_unit": 0.000001},
        "security": keys.section(),
    }
    with capture_logs() as lines:
        async with in_process(**sections) as (_, client):
            body = {"name": "Mug", "price": 1}
            answer = await client.post("/items/", json=body, headers=keys.writer.header)
    assert answer.status_code == 201
    (told,) = [line for line in lines if line["event"] == "slow unit" and "route" in line]
    assert (told["log_level"], told["route"], told["principal"]) == ("warning", "/items/", "writer")


def test_nothing_watches_where_both_are_off() -> None:
    assert type(observer_of(LoggingSettings(slow_unit=0, long_transaction=0))) is RequestObserver
    for settings, watches in (
        (LoggingSettings(), True),
        (LoggingSettings(long_transaction=0), False),
        (LoggingSettings(slow_unit=0, long_transaction=0), False),
    ):
        with observer_of(settings).watching():
            assert ("slow-units" in {thread.name for thread in threading.enumerate()}) is watches
        assert "slow-units" not in {thread.name for thread in threading.enumerate()}
