"""The service as its users run it, for the tests: `python -m api` in a process, or its app in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.migrations import prepare
from api.settings import Settings
from tests.support.asgi import lifespan
from tests.support.backends import Backend, Leg, SqliteBackend
from tests.support.client import RawAnswer, RawClient
from tests.support.forked import import_once, run_forked
from tests.support.pgbouncer import PgBouncerBackend, postgres_backend
from tests.support.postgres import PostgresServers
from tests.support.processes import python_environment
from tests.support.server import ROOT, CommandServer
from tests.support.wait import LIMIT, wait_until

import_once("api.cli")

on_one_engine = pytest.mark.parametrize("service", ["sqlite"], indirect=True)
"""For what is decided before a database is asked."""

# The items that break the promise of the inventory; in one statement, so of one snapshot.
BROKEN = """
SELECT id, received, stock, held FROM (
  SELECT items.id, items.stock,
    (SELECT coalesce(sum(quantity), 0) FROM receipts WHERE item_id = items.id) AS received,
    (SELECT coalesce(sum(quantity), 0) FROM order_lines JOIN orders ON orders.id = order_id
      WHERE item_id = items.id AND status = 'open') AS held
  FROM items) AS sums
WHERE stock < 0 OR received <> stock + held
"""


def new_backend(leg: Leg, folder: Path, servers: PostgresServers) -> Backend:
    """An empty database for a fixture of any scope; drop it."""
    folder.mkdir(parents=True, exist_ok=True)
    if leg == "sqlite":
        return SqliteBackend(folder)
    return postgres_backend(leg, servers.get(leg), folder)


def write_config(path: Path, sections: Mapping[str, Mapping[str, object]]) -> Path:
    """A configuration file; JSON's strings and numbers are TOML's as well."""
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Service(CommandServer):
    """`python -m api serve --config ...` on a database, with its log in JSON."""

    forked = True

    def __init__(self, backend: Backend, folder: Path, **database: object) -> None:
        self.backend = backend
        if isinstance(backend, PgBouncerBackend):
            database.setdefault("pooler", True)
        self.config = write_config(
            folder / "service.toml",
            {"database": {"url": backend.database_url, **database}, "logging": {"format": "json"}},
        )
        command = [sys.executable, "-m", "api", "serve", "--config", str(self.config), "--port", "{port}"]
        super().__init__(command, folder=folder)

    def _is_up(self, news: str) -> bool:
        # What it prints when it listens; a request each time would cost what the start needs.
        return "\n  settings  " in news

    def lines(self) -> list[dict[str, Any]]:
        """Every complete line of the log so far; what the start prints is none."""
        return lines_in(self.log())

    def lines_of(self, response: httpx.Response | RawAnswer) -> list[dict[str, Any]]:
        """What was logged during a request; the last is its own line, which comes after the answer."""
        request_id = response.headers["x-request-id"]

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines() if line.get("request_id") == request_id]

        wait_until(lambda: any(line["event"] == "request" for line in found()), "the request was logged")
        return found()

    def line_of(self, response: httpx.Response | RawAnswer) -> dict[str, Any]:
        """The one line that a request leaves."""
        (line,) = [line for line in self.lines_of(response) if line["event"] == "request"]
        return line

    def raw_of_each_worker(self, workers: int) -> list[RawClient]:
        """An open connection to each of so many workers: which of them takes one is up to the kernel."""
        clients: dict[int | None, RawClient] = {}

        def one_more() -> bool:
            client = self.raw()
            answer = client.request("GET", "/livez", headers={"Connection": "keep-alive"}).answer()
            assert answer is not None
            clients.setdefault(self.line_of(answer).get("worker"), client)
            return len(clients) == workers

        wait_until(one_more, "each worker has a client")
        return list(clients.values())


def lines_in(log: str) -> list[dict[str, Any]]:
    """What was logged, but for a last line that is on its way."""
    return [json.loads(line) for line in log.rpartition("\n")[0].splitlines() if line.startswith("{")]


def run_api(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`python -m api ...`, to its end; some tests start the interpreter too."""
    environment = python_environment({"PYTHONPATH": str(ROOT), **(env or {})})
    return run_forked("api", *arguments, env=environment, cwd=cwd, timeout=4 * LIMIT)


@asynccontextmanager
async def in_process(**sections: Mapping[str, Any]) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """The app in this process, prepared as a start does it, and a client for it.

    A crash is answered, as a server does it, and not raised into the test.
    """
    settings = Settings.model_validate(sections)
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    await prepare(app.state.database, settings.database.migrate_on_start)
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield app, client


def assert_problem(response: httpx.Response, status: int, name: str) -> dict[str, Any]:
    """The answer is a problem document of this kind, whole and short; returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert isinstance(document, dict)
    assert document["type"] == f"/problems/{name}"
    assert document["status"] == status
    assert document["title"]
    assert len(response.content) < 20_000
    return document


def new_item(client: httpx.Client, *, stock: int = 0, **fields: object) -> int:
    """The id of a new item."""
    answer = client.post("/items/", json={"name": "Mug", "price": 1250, "stock": stock, **fields})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def new_order(client: httpx.Client, *lines: tuple[int, int]) -> httpx.Response:
    """The answer to an order of these item ids and quantities."""
    return client.post("/orders/", json={"lines": lines_of(lines)})


def lines_of(lines: Sequence[tuple[int, int]]) -> list[dict[str, int]]:
    return [{"item_id": item_id, "quantity": quantity} for item_id, quantity in lines]


def stock_of(client: httpx.Client, item_id: int) -> int:
    return int(client.get(f"/items/{item_id}").json()["stock"])
