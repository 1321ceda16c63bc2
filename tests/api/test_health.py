"""`/livez` and `/readyz`: whether to restart the process, and whether to send it requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.service import Service, assert_problem, in_process
from tests.support.backends import Backend, SqliteBackend
from tests.support.postgres import PostgresServer, wheel_binaries


def test_a_running_service_is_alive_and_ready(client: httpx.Client) -> None:
    assert (client.get("/livez").status_code, client.get("/livez").json()) == (200, {"status": "alive"})
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "revision": "0003"})


def test_whoever_asks_for_life_asks_no_database(service: Service, client: httpx.Client) -> None:
    assert service.line_of(client.get("/livez"))["statements"] == 0


async def test_a_database_that_was_never_migrated_is_not_ready(backend: Backend) -> None:
    database = {"url": backend.database_url, "migrate_on_start": "never"}
    async with in_process(database=database) as (_, client):
        answer = await client.get("/readyz")
        problem = assert_problem(answer, 503, "not-ready")
        assert answer.headers["retry-after"]
        assert (problem["database"], problem["revision"], problem["needed"]) == ("ok", None, "0003")
        assert "python -m api migrate" in problem["detail"]
        assert (await client.get("/livez")).status_code == 200


async def test_a_schema_of_another_revision_is_not_ready(backend: Backend) -> None:
    async with in_process(database={"url": backend.database_url}) as (_, client):
        assert (await client.get("/readyz")).status_code == 200
        backend.execute("UPDATE alembic_version SET version_num = '9999'")
        problem = assert_problem(await client.get("/readyz"), 503, "not-ready")
        assert problem["revision"] == "9999"


async def test_a_schema_that_went_away_is_not_ready(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    async with in_process(database={"url": backend.database_url}) as (_, client):
        backend.execute("DROP TABLE alembic_version")
        assert_problem(await client.get("/readyz"), 503, "not-ready")


@pytest.fixture(scope="module")
def stoppable() -> Iterator[PostgresServer]:
    """A server that no other test needs."""
    binaries = wheel_binaries()
    assert binaries is not None
    server = PostgresServer(binaries)
    server.start()
    yield server
    server.remove()


@pytest.mark.parametrize("driver", [None, "psycopg"])
async def test_a_database_that_is_away_is_not_ready_until_it_is_back(
    stoppable: PostgresServer, driver: str | None
) -> None:
    stoppable.start()
    url = stoppable.url(stoppable.create_database(), driver)
    database, units = {"url": url, "pool_timeout": 5}, {"retry_seconds": 1}
    async with in_process(database=database, unit_of_work=units) as (_, client):
        assert (await client.get("/readyz")).status_code == 200
        stoppable.stop()
        answer = await client.get("/readyz")
        assert assert_problem(answer, 503, "not-ready")["database"] == "unreachable"
        assert answer.headers["retry-after"]
        assert (await client.get("/livez")).status_code == 200
        answer = await client.post("/items/", json={"name": "Mug", "price": 1})
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"]
        stoppable.start()
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/items/", json={"name": "Mug", "price": 1})).status_code == 201
