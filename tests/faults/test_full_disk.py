"""A full disk, or a file that cannot be written: a clear 503, nothing lost, and no restart to go on.

What is told is compared with what is there while the disk is full, after a crash at that moment, and when
there is room again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests.api.service import Service, assert_problem, in_process, run_api
from tests.faults.disks import Disk, Limited, disk, immutable
from tests.support.backends import Mode, PostgresBackend, SqliteBackend
from tests.support.wait import wait_until
from tests.uow.units import insert, make_tables, names, within
from uow import Database

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what fills a disk here is Linux's own")

LENGTH = int(os.environ.get("FAULTS", "1"))
WRITERS = 8
TURNS = 5  # not so many that SQLite writes its log back and begins it anew: there would be room in it
FRAME = 24 + 4096  # bytes of a page in SQLite's log, with its header; see fileformat2.html, section 4.1
PERMISSIONS_COUNT = "tests.faults.unprivileged"


@dataclass
class Books:
    """What clients were told."""

    client: httpx.Client
    acknowledged: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    problems: set[str] = field(default_factory=set)
    _numbers: Iterator[int] = field(default_factory=count)

    def post(self) -> bool:
        """Whether a new item was acknowledged; anything else has to be a 503 that says what to do."""
        name = f"n{next(self._numbers)}"
        answer = self.client.post("/items/", json={"name": name, "price": 1, "stock": 2})
        if answer.status_code == 201:
            self.acknowledged.add(name)
            return True
        document = answer.json()
        self.problems.add(document["type"])
        assert (answer.status_code, document["outcome"]) == (503, "rolled_back"), document
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) > 0
        self.refused.add(name)
        return False

    def assert_kept(self, names: set[str]) -> None:
        """All that was acknowledged is there, and nothing of what was refused."""
        assert names == self.acknowledged


def names_in(backend: SqliteBackend) -> set[str]:
    """The items that another connection finds in a sound database, each with its receipt."""
    assert backend.query("PRAGMA integrity_check") == [("ok",)]
    assert backend.count("receipts") == backend.count("items")
    return {name for (name,) in backend.query("SELECT name FROM items")}


def names_after_a_crash(backend: SqliteBackend, folder: Path) -> set[str]:
    """What would be found if the process were killed now: the log is read anew, without its index."""
    copy = SqliteBackend(folder)
    for suffix in ("", "-wal"):
        shutil.copy(f"{backend.path}{suffix}", f"{copy.path}{suffix}")
    try:
        return names_in(copy)
    finally:
        copy.drop()


def assert_not_ready(client: httpx.Client, refusal: str) -> dict[str, Any]:
    """`/readyz` says which check fails, and who only reads is served."""
    answer = client.get("/readyz")
    document = assert_problem(answer, 503, "not-ready")
    assert (document["database"], document["refusal"]) == ("unwritable", refusal)
    assert answer.headers["retry-after"]
    assert client.get("/items/").status_code == 200
    assert client.get("/livez").status_code == 200
    return document


def is_ready(client: httpx.Client) -> bool:
    return client.get("/readyz").status_code == 200


def all_at_once(books: Books) -> None:
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda _: books.post(), range(WRITERS * TURNS)))


def log_of(service: Service) -> str:
    return "\n".join(str(line.get("exception", "")) for line in service.lines())


class Plain(Service):
    """The service, for which the permissions of files count, whoever runs the tests."""

    def _command(self) -> Sequence[str]:
        words = list(super()._command())
        words.insert(words.index("api"), PERMISSIONS_COUNT)
        return words


Start = Callable[..., tuple[Service, SqliteBackend]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the service on a file in this folder; it is killed after the test."""
    started: list[Service] = []

    def start_one(folder: Path, kind: type[Service] = Service) -> tuple[Service, SqliteBackend]:
        backend = SqliteBackend(folder)
        service = kind(backend, tmp_path / "service")
        started.append(service)
        service.start()
        return service, backend

    yield start_one
    for service in started:
        service.close()


@pytest.fixture(params=["limited", "small"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with disk(request.param, tmp_path / "disk") as made:
        yield made


def test_a_full_disk_refuses_loses_nothing_and_needs_no_restart(full: Disk, start: Start) -> None:
    service, backend = start(full.folder)
    pid, client = service.pid, service.client()
    books = Books(client)
    all_at_once(books)
    assert books.problems <= {"/problems/storage-full"}
    assert is_ready(client)

    full.fill(pid)
    wait_until(lambda: not books.post(), "the disk is full")
    all_at_once(books)
    assert_not_ready(client, "storage-full")
    books.assert_kept(names_in(backend))

    full.empty(pid)
    begun = time.monotonic()
    wait_until(partial(is_ready, client), "it is ready again")
    recovered = time.monotonic() - begun
    before = len(books.acknowledged)
    all_at_once(books)
    assert len(books.acknowledged) == before + WRITERS * TURNS
    books.assert_kept(names_in(backend))
    print(f"ready again after {recovered:.3f} s")  # noqa: T201 - a measurement
    kept, refused = len(books.acknowledged), len(books.refused)
    print(f"{kept} acknowledged, {refused} refused, none lost")  # noqa: T201 - a measurement
    assert books.problems == {"/problems/storage-full"}
    # The operator finds SQLite's own words.
    assert any(words in log_of(service) for words in ("disk I/O error", "disk is full"))
    assert (service.alive, service.pid) == (True, pid)


def test_a_commit_that_the_disk_breaks_off_anywhere_is_not_found_after_a_crash(
    tmp_path: Path, start: Start
) -> None:
    """The log ends in the middle of a frame's header, of its page, between frames: always the same."""
    limited = Limited(tmp_path / "disk")
    limited.folder.mkdir()
    service, backend = start(limited.folder)
    books = Books(service.client())
    assert books.post()
    frames = range(2 + LENGTH)
    for frame in frames:
        for part in (0, 1, 23, 24, 25, 2048, FRAME - 1):
            log = Path(f"{backend.path}-wal").stat().st_size
            limited.limit(service.pid, log + frame * FRAME + part)
            wait_until(lambda: not books.post(), "the disk is full")
            books.assert_kept(names_after_a_crash(backend, tmp_path))
            limited.empty(service.pid)
            assert books.post()
    books.assert_kept(names_after_a_crash(backend, tmp_path))
    books.assert_kept(names_in(backend))
    print(f"{len(frames) * 7} commits broken off, {len(books.refused)} refused")  # noqa: T201 - a measurement

    limited.limit(service.pid, Path(f"{backend.path}-wal").stat().st_size)
    assert not books.post()
    service.kill()
    books.assert_kept(names_in(backend))


def test_a_file_that_the_service_may_not_write_is_told_before_anybody_writes(
    tmp_path: Path, start: Start
) -> None:
    """As a backup that was put back by root; the right to write is enough to go on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    path = SqliteBackend(folder).path
    assert run_api("migrate", env={"UOW_DATABASE__URL": f"sqlite:///{path}"}).returncode == 0
    path.chmod(0o444)
    service, backend = start(folder, Plain)
    pid, client = service.pid, service.client()
    books = Books(client)

    assert_not_ready(client, "read-only-database")
    all_at_once(books)
    assert_not_ready(client, "read-only-database")
    assert (len(books.acknowledged), books.problems) == (0, {"/problems/read-only-database"})

    for opened in (path, *folder.glob("*-*")):
        opened.chmod(0o644)
    assert is_ready(client)
    all_at_once(books)
    assert len(books.acknowledged) == WRITERS * TURNS
    books.assert_kept(names_in(backend))
    # The permission is asked for where a file is opened; who has it open goes on, and keeps its word.
    path.chmod(0o444)
    assert books.post()
    assert is_ready(client)
    books.assert_kept(names_in(backend))
    assert (service.alive, service.pid) == (True, pid)
    assert "attempt to write a readonly database" in log_of(service)


def test_a_file_that_becomes_unwritable_under_a_running_service(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    service, backend = start(folder)
    pid, client = service.pid, service.client()
    books = Books(client)
    all_at_once(books)
    assert is_ready(client)
    # Not the index of the log, which SQLite maps into its memory: the kernel ends who cannot write there.
    with immutable(backend.path, Path(f"{backend.path}-wal")):
        assert not books.post()
        all_at_once(books)
        document = assert_not_ready(client, "storage-full")
        assert "or fails" in document["detail"]
    assert is_ready(client)
    all_at_once(books)
    assert len(books.acknowledged) == 2 * WRITERS * TURNS
    books.assert_kept(names_in(backend))
    assert (service.alive, service.pid) == (True, pid)


def test_a_probe_writes_nothing_while_writes_go_well(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    service, backend = start(folder)
    client = service.client()
    with closing(sqlite3.connect(backend.path)) as other:

        def changes() -> int:
            return int(other.execute("PRAGMA data_version").fetchone()[0])

        before = changes()
        assert is_ready(client)
        first = changes()
        assert first != before  # nothing was stored since the start
        assert Books(client).post()
        written = changes()
        assert written != first
        assert all(is_ready(client) for _ in range(5))
        assert changes() == written


@pytest.mark.parametrize("refused_at", ["BEGIN", "INSERT"])
async def test_a_connection_that_cannot_write_is_not_kept(
    sqlite: SqliteBackend, mode: Mode, refused_at: str
) -> None:
    """It was opened when the file could not be written, say; the next one is opened anew."""
    make_tables(sqlite)

    def lock(session: Session) -> None:
        session.execute(text("PRAGMA query_only = ON"))
        if refused_at == "INSERT":
            insert("refused")(session)

    async with Database(sqlite.database_url) as database:
        if refused_at == "BEGIN":
            await within(database, mode, lock)
        with pytest.raises(DBAPIError, match="readonly database"):
            await within(database, mode, lock if refused_at == "INSERT" else insert("refused"))
        await within(database, mode, insert("kept"))
    assert names(sqlite) == ["kept"]


@pytest.mark.backends("pg18")
async def test_a_server_that_takes_no_writes_is_told_until_it_does(postgres: PostgresBackend) -> None:
    async with in_process(database={"url": postgres.database_url}) as (_, client):
        item = {"name": "Mug", "price": 1}
        assert (await client.get("/readyz")).status_code == 200
        alter = f'ALTER DATABASE "{postgres.dbname}"'
        postgres.server.query("postgres", f"{alter} SET default_transaction_read_only = on")
        postgres.terminate_all_backends()
        assert_problem(await client.post("/items/", json=item), 503, "read-only-database")
        document = assert_problem(await client.get("/readyz"), 503, "not-ready")
        assert (document["database"], document["refusal"]) == ("unwritable", "read-only-database")
        postgres.server.query("postgres", f"{alter} RESET default_transaction_read_only")
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/items/", json=item)).status_code == 201


@pytest.mark.backends("pg18")
async def test_probes_at_once_are_told_the_same(postgres: PostgresBackend) -> None:
    """None of them says ready because another is just finding out that it is not."""
    settings = {"url": postgres.database_url}
    async with in_process(database=settings) as (_, client):
        assert (await client.get("/readyz")).status_code == 200
    alter = f'ALTER DATABASE "{postgres.dbname}" SET default_transaction_read_only = on'
    postgres.server.query("postgres", alter)
    async with in_process(database=settings | {"migrate_on_start": "never"}) as (_, client):
        for answer in await asyncio.gather(*(client.get("/readyz") for _ in range(3))):
            assert assert_problem(answer, 503, "not-ready")["refusal"] == "read-only-database"


@pytest.mark.backends("pg18")
async def test_what_refuses_only_the_try_is_not_the_storage(postgres: PostgresBackend) -> None:
    """A role that may not change the table of the migrations serves as well as any."""
    async with in_process(database={"url": postgres.database_url}) as (_, client):
        postgres.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
            "CREATE TRIGGER refuse BEFORE UPDATE ON alembic_version EXECUTE FUNCTION refuse()"
        )
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_a_writer_that_is_busy_is_no_reason_not_to_be_ready(sqlite: SqliteBackend) -> None:
    settings = {"url": sqlite.database_url, "pool_timeout": 0.1}
    async with in_process(database=settings) as (_, client):
        with closing(sqlite.connect()) as writer:
            writer.execute("BEGIN IMMEDIATE")
            assert (await client.get("/readyz")).status_code == 200
            writer.execute("ROLLBACK")
