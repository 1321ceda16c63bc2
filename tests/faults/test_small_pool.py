"""L26: 200 clients at once, a pool of 2, and handlers that hold their connection for 200 ms.

Nothing hangs: some are let in and served in bounded time, the others are told to come again, and nothing was
begun for them. Whoever needs no database notices nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.api.service import Service, new_item, stock_of
from tests.faults.prober import probing
from tests.faults.small_pool_app import HELD
from tests.faults.storm import Answer
from tests.support.backends import Backend, Mode, PostgresBackend, SqliteBackend
from tests.support.server import Serve, UvicornServer
from tests.support.wait import LIMIT, wait_until

pytestmark = pytest.mark.backends("sqlite", "pg18")

LENGTH = int(os.environ.get("FAULTS", "1"))
CLIENTS = 200
POOL = 2
MOST = 20
"""How many may wait."""
SLOW_MACHINE = LIMIT
"""Seconds that two shared cores may add to anything."""


@dataclass(frozen=True)
class Timed:
    """An answer, and how long it took."""

    answer: Answer
    seconds: float

    @property
    def kept(self) -> bool:
        return self.answer.status == 201

    @property
    def name(self) -> str:
        return self.answer.path.rpartition("/")[2]


class Rush:
    """200 clients that ask at the same moment, each for something of its own."""

    def __init__(self, port: int, path: Callable[[int], str], body: str | None = None) -> None:
        self._port = port
        self._path = path
        self._body = body
        self._together = threading.Barrier(CLIENTS)
        with_threads = ThreadPoolExecutor(CLIENTS)
        self._running = [with_threads.submit(self._client, number) for number in range(CLIENTS)]
        with_threads.shutdown(wait=False)

    def _client(self, number: int) -> Timed:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=4 * LIMIT)
        headers = {} if self._body is None else {"Content-Type": "application/json"}
        with contextlib.closing(connection):
            self._together.wait(LIMIT)
            begun = time.perf_counter()
            connection.request("POST", self._path(number), self._body, headers)
            response = connection.getresponse()
            retry_after, body = response.getheader("Retry-After"), response.read().decode()
            answer = Answer(self._path(number), response.status, retry_after, body)
            return Timed(answer, time.perf_counter() - begun)

    def answered(self) -> list[Timed]:
        """Those that have their answer by now."""
        return [each.result() for each in self._running if each.done()]

    def finish(self) -> list[Timed]:
        """All answers; a client without one fails the test, which is what a hang looks like."""
        _, hanging = wait(self._running, timeout=4 * LIMIT)
        assert not hanging, f"{len(hanging)} clients have no answer"
        return self.answered()


def serving(serve: Serve, backend: Backend, **options: object) -> UvicornServer:
    pool = {"pool_size": POOL, "max_overflow": 0, **options}
    return serve(
        "tests.faults.small_pool_app:create_app", backend=backend, env={"TESTS_POOL": json.dumps(pool)}
    )


def state(client: httpx.Client) -> dict[str, int]:
    told: dict[str, int] = client.get("/state").json()
    return told


def told(what: str, answers: Sequence[Timed]) -> None:
    seconds = sorted(each.seconds for each in answers)
    middle, last = seconds[len(seconds) // 2], seconds[-1]
    print(f"{what}: {len(seconds)}, median {middle:.2f} s, max {last:.2f} s")  # noqa: T201 - a measurement


def rush(server: UvicornServer, backend: Backend, mode: Mode, turn: int) -> tuple[list[Timed], list[Timed]]:
    """Those who were let in, and those who were refused, of whom nothing is there; all is at rest again."""
    client = server.client()
    before = state(client)
    with probing(server.port) as probed:
        answers = Rush(server.port, lambda n: f"/{mode}/{turn}-{n}").finish()
        ended = time.perf_counter()
        wait_until(
            lambda: (state(client)["waiting"], state(client)["open"]) == (0, 0), "nobody waits or holds"
        )
        assert client.post(f"/{mode}/after-{turn}").status_code == 201
        recovered = time.perf_counter() - ended
    kept = [each for each in answers if each.kept]
    refused = [each for each in answers if not each.kept]
    told("let in", kept)
    told("refused", refused)
    print(f"served again after {recovered:.2f} s; without a database: {probed}")  # noqa: T201 - a measurement

    assert all(each.answer.may_come_again for each in refused)
    kinds = {json.loads(each.answer.body)["type"] for each in refused}
    assert kinds == {"/problems/database-unavailable"}
    assert recovered < SLOW_MACHINE
    assert probed.statuses == {200}
    assert probed.percentile(50) < 250

    rows = {name for (name,) in backend.query("SELECT name FROM items") if name.startswith(f"{turn}-")}
    assert rows == {each.name for each in kept}
    after = state(client)
    # None of the refused ever had a connection.
    assert after["connected"] - before["connected"] == len(kept) + 1
    assert (after["waiting"], after["open"]) == (0, 0)
    backend.wait_until_at_rest()
    return kept, refused


def at_once(backend: Backend) -> int:
    """How many hold a connection at the same time; SQLite has one writer."""
    return POOL if isinstance(backend, PostgresBackend) else 1


@pytest.mark.usefixtures("tables")
def test_L26_what_is_too_much_is_refused_at_once(backend: Backend, mode: Mode, serve: Serve) -> None:
    server = serving(serve, backend, max_waiting=MOST, pool_timeout=4 * LIMIT)
    for turn in range(LENGTH):
        kept, refused = rush(server, backend, mode, turn)
        # While one is refused, all the places were taken, and those who had them are served in the end.
        assert len(kept) >= MOST
        assert refused
        line = (MOST / at_once(backend) + 1) * HELD
        assert max(each.seconds for each in kept) < line + SLOW_MACHINE
        assert max(each.seconds for each in refused) < SLOW_MACHINE


@pytest.mark.modes("sync")
@pytest.mark.usefixtures("tables")
def test_L26_nobody_waits_for_longer_than_the_wait_for_the_pool(
    backend: Backend, mode: Mode, serve: Serve
) -> None:
    """Without `max_waiting` all of them wait, and those whose time is over are refused."""
    seconds = 1.0
    server = serving(serve, backend, pool_timeout=seconds)
    for turn in range(LENGTH):
        kept, refused = rush(server, backend, mode, turn)
        assert len(kept) >= at_once(backend)
        assert refused
        assert min(each.seconds for each in refused) > seconds / 2
        assert max(each.seconds for each in kept + refused) < seconds + HELD + SLOW_MACHINE


@contextlib.contextmanager
def nobody_may_write(backend: Backend, table: str) -> Iterator[None]:
    """Whoever writes stands still until the end of the block."""
    if isinstance(backend, PostgresBackend):
        with backend.server.connect(backend.dbname) as holder, holder.transaction():
            holder.execute(f"LOCK TABLE {table} IN SHARE MODE".encode())
            yield
    elif isinstance(backend, SqliteBackend):
        with contextlib.closing(backend.connect()) as writer:
            writer.execute("BEGIN IMMEDIATE")
            yield
            writer.execute("ROLLBACK")


@pytest.fixture
def service(backend: Backend, tmp_path: Path) -> Iterator[Service]:
    options = {"pool_size": POOL, "pool_overflow": 0, "pool_timeout": "2m", "max_waiting": MOST}
    made = Service(backend, tmp_path, **options)
    yield made
    made.close()


def test_L26_the_service_refuses_all_but_those_for_whom_there_is_room(
    service: Service, backend: Backend
) -> None:
    """Those who have a connection stand still, so that it is exact: the others are refused meanwhile."""
    client = service.start().client()
    item = new_item(client, stock=1)
    # With SQLite it is another process that writes; whoever waits for that counts among those who wait.
    room = MOST + (POOL if isinstance(backend, PostgresBackend) else 0)
    with probing(service.port) as probed:
        with nobody_may_write(backend, "receipts"):
            clients = Rush(service.port, lambda _: f"/items/{item}/receipts", '{"quantity": 1}')
            wait_until(lambda: len(clients.answered()) >= CLIENTS - room, "the others were refused")
            refused = clients.answered()
            assert backend.count("receipts") == 1
        answers = clients.finish()
    kept = [each for each in answers if each.kept]
    told("refused", refused)
    told("let in", kept)
    print(f"without a database: {probed}")  # noqa: T201 - a measurement

    assert all(each.answer.may_come_again for each in refused)
    assert (len(refused), len(kept)) == (CLIENTS - room, room)
    assert probed.statuses == {200}
    assert probed.percentile(50) < 250
    assert stock_of(client, item) == 1 + room
    assert backend.count("receipts") == 1 + room
    assert client.get("/readyz").status_code == 200
    backend.wait_until_at_rest()


@pytest.mark.backends("pg18")
def test_L26_who_reads_is_not_refused_because_writers_wait(service: Service, backend: Backend) -> None:
    """Readers have a pool of their own, in which nobody waits."""
    client = service.start().client()
    item = new_item(client)
    with nobody_may_write(backend, "receipts"):
        clients = Rush(service.port, lambda _: f"/items/{item}/receipts", '{"quantity": 1}')
        wait_until(lambda: len(clients.answered()) >= CLIENTS - POOL - MOST, "the others were refused")
        answers = [client.get(f"/items/{item}"), client.get("/readyz")]
    clients.finish()
    assert [answer.status_code for answer in answers] == [200, 200]
