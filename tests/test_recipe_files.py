"""The recipes that are whole files, run as their pages say: workers, migrations and servers of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakeredis import TcpFakeServer
from redis import Redis

from tests.support.pages import DOCS, files, programs, quickstart
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT, CommandServer, Serve
from tests.support.wait import LIMIT, wait_until

RECIPES = DOCS / "recipes"

COMMIT_REFUSES_NO = """
CREATE TABLE watched (item_id INTEGER REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TRIGGER watch AFTER INSERT ON items WHEN NEW.name = 'no' BEGIN INSERT INTO watched VALUES (-1); END;
"""

# The command `arq`, without the line about the server that it logs at first: fakeredis knows no INFO.
ARQ = """
import arq.cli
import arq.worker


async def nothing(*_):
    pass


arq.worker.log_redis_info = nothing
arq.cli.cli()
"""

FAILS_HALF_WAY = """
from alembic import op

revision = "two"
down_revision = "one"


def upgrade():
    op.execute("CREATE TABLE half (id INTEGER)")
    op.execute("DROP TABLE nowhere")
"""


class Folder:
    """A folder with the quickstart's program as app.py, and the files that a page has its reader write."""

    def __init__(self, path: Path, page: str, serve: Serve, redis: str = "") -> None:
        self.path = path
        self._serve = serve
        self.env = {
            "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
            "CELERY_BROKER_URL": redis,  # goes before the one in the file
            "REDIS_URL": redis,
        }
        for name, text in {"app.py": quickstart(), **files(RECIPES / page)}.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text(text, encoding="utf-8")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`python -m command`, to its end."""
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.path,
            env=python_environment(self.env),
            capture_output=True,
            text=True,
            timeout=4 * LIMIT,
            check=False,
        )

    def start(self, *command: str) -> tuple[Child, Path]:
        """`python -m command`, until it is stopped, and its log."""
        log = self.path / "worker.log"
        child = Child(
            [sys.executable, "-m", *command], log=log, env=python_environment(self.env), cwd=self.path
        )
        return child, log

    def serve(self, app: str) -> CommandServer:
        go = 'cd "$0" && exec "$@"'
        uvicorn = [sys.executable, "-m", "uvicorn", app, "--port", "{port}"]
        return self._serve.command("sh", "-c", go, str(self.path), *uvicorn, env=self.env, ready_path="/docs")

    def query(self, sql: str, file: str = "items.db") -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.path / file)) as connection:
            return connection.execute(sql).fetchall()

    def execute(self, sql: str) -> None:
        with closing(sqlite3.connect(self.path / "items.db", timeout=LIMIT)) as connection:
            connection.executescript(sql)


@pytest.fixture
def redis() -> Iterator[str]:
    """The URL of what speaks Redis' protocol, on a port of its own."""
    server = TcpFakeServer(("127.0.0.1", 0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()


def wait_for(log: Path, text: str, child: Child) -> None:
    wait_until(lambda: text in log.read_text() or not child.alive, f"{text!r} in the log", limit=2 * LIMIT)
    assert text in log.read_text(), log.read_text()


def test_celery_gets_what_was_committed_and_tries_again(tmp_path: Path, serve: Serve) -> None:
    folder = Folder(tmp_path, "workers.md", serve, "sqla+sqlite:///broker.db")
    client = folder.serve("with_celery:app").client()
    folder.execute(COMMIT_REFUSES_NO)
    assert client.post("/indexed/", params={"name": "no"}).status_code >= 400
    made = client.post("/indexed/", params={"name": " pen "})
    assert made.status_code == 201
    folder.execute("ALTER TABLE items RENAME TO elsewhere")  # what the worker meets is an OperationalError
    # What it would say to other workers takes it seconds, on a broker that is a file.
    alone = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    worker, log = folder.start(
        "celery", "--app", "tasks", "worker", "--concurrency", "2", "--loglevel", "INFO", *alone
    )
    try:
        wait_for(log, "retry: Retry in", worker)
        folder.execute("ALTER TABLE elsewhere RENAME TO items")
        wait_for(log, "succeeded in", worker)
    finally:
        assert worker.stop(signal.SIGTERM) == 0, log.read_text()
    assert folder.query("SELECT id, name FROM items") == [(made.json()["id"], "pen")]
    # One task, however often it was tried: none was sent for the request that was refused.
    assert len(set(re.findall(r"Task tasks.index\[([^]]+)\] received", log.read_text()))) == 1


def test_arq_gets_what_was_committed(tmp_path: Path, serve: Serve, redis: str) -> None:
    folder = Folder(tmp_path, "workers.md", serve, redis)
    client = folder.serve("with_arq:app").client()
    folder.execute(COMMIT_REFUSES_NO)
    assert client.post("/indexed/", params={"name": "no"}).status_code >= 400
    made = client.post("/indexed/", params={"name": " pen "})
    assert made.status_code == 201
    (tmp_path / "worker.py").write_text(ARQ)
    with Redis.from_url(redis) as queue:
        wait_until(lambda: queue.zcard("arq:queue") == 1, "the job is in the queue")
    ended = folder.run("worker", "jobs.WorkerSettings", "--burst")  # until there is no job left
    assert ended.returncode == 0, ended.stderr
    # None was sent for the request that was refused.
    assert re.findall(r"→ \w+:index\((\d+)\)", ended.stderr) == [str(made.json()["id"])]
    assert folder.query("SELECT id, name FROM items") == [(made.json()["id"], "pen")]


def test_alembic_migrates_in_one_transaction(tmp_path: Path, serve: Serve) -> None:
    begun = Folder(tmp_path, "operations.md", serve)
    assert begun.run("alembic", "init", "migrations").returncode == 0
    folder = Folder(tmp_path, "sqlalchemy.md", serve)
    ini = tmp_path / "alembic.ini"
    kept = [line for line in ini.read_text().splitlines() if not line.startswith("sqlalchemy.url")]
    ini.write_text("\n".join(kept))
    made = folder.run("alembic", "revision", "--autogenerate", "--message", "items", "--rev-id", "one")
    assert made.returncode == 0, made.stderr
    assert folder.run("alembic", "upgrade", "head").returncode == 0
    assert folder.query("SELECT version_num FROM alembic_version") == [("one",)]
    assert folder.query("SELECT * FROM items") == []

    (tmp_path / "migrations" / "versions" / "two.py").write_text(FAILS_HALF_WAY)
    failed = folder.run("alembic", "upgrade", "head")
    assert failed.returncode == 1
    assert "no such table: nowhere" in failed.stderr
    assert folder.query("SELECT version_num FROM alembic_version") == [("one",)]
    assert folder.query("SELECT count(*) FROM sqlite_master WHERE name = 'half'") == [(0,)]

    (block,) = [block for block in programs(RECIPES / "sqlalchemy.md") if "def upgrade" in block.text]
    call = "with Database('sqlite:///other.db') as own, own.new_unit() as unit:\n"
    call += "    config = Config('alembic.ini')\n    upgrade(unit, config)\n"
    fixed = FAILS_HALF_WAY.replace("DROP TABLE nowhere", "DROP TABLE half")
    (tmp_path / "migrations" / "versions" / "two.py").write_text(fixed)
    (tmp_path / "upgrade.py").write_text(f"from uow import Database\n{block.text}\n\n{call}")
    upgraded = folder.run("upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    assert folder.query("SELECT version_num FROM alembic_version", "other.db") == [("two",)]


def test_sqlmodels_session_is_that_of_the_request(tmp_path: Path, serve: Serve) -> None:
    folder = Folder(tmp_path, "sqlalchemy.md", serve)
    client = folder.serve("heroes:app").client()
    made = client.post("/heroes/", json={"name": "Ada"})
    assert (made.status_code, made.json()) == (201, {"id": 1, "name": "Ada"})
    assert client.get("/heroes/").json() == [{"id": 1, "name": "Ada"}]
    assert folder.query("SELECT name FROM hero", "heroes.db") == [("Ada",)]


def test_a_broker_gets_what_was_committed(tmp_path: Path, serve: Serve, redis: str) -> None:
    folder = Folder(tmp_path, "events.md", serve, redis)
    client = folder.serve("with_events:app").client()
    folder.execute(COMMIT_REFUSES_NO)
    assert client.post("/told/", params={"name": "no"}).status_code >= 400
    made = client.post("/told/", params={"name": "pen"})
    assert made.status_code == 201
    with Redis.from_url(redis, decode_responses=True) as made_broker:
        broker: Any = made_broker  # its types are those of the async one as well
        wait_until(lambda: broker.xlen("items") >= 1, "the event is in the stream")
        ((_, entry),) = broker.xrange("items")
    event = json.loads(entry["event"])
    assert (event["id"], event["type"]) == (entry["id"], "item.created")
    assert event["data"] == {"item_id": made.json()["id"], "name": "pen"}
    wait_until(lambda: folder.query("SELECT * FROM outbox_events") == [], "it is not owed any more")
