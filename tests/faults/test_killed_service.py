"""The service under a write load, killed with -9 or told to stop: what it said is true, and all of it.

Each request has a number, by which what it has written is found. `make faults` does it longer.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import IncompleteRead
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from tests.api.service import BROKEN, Service, lines_of, new_item
from tests.support.backends import Backend, PostgresBackend, SqliteBackend
from tests.support.client import RawAnswer, RawClient
from tests.support.wait import LIMIT, wait_until

LENGTH = int(os.environ.get("FAULTS", "1"))
KILLS = 3 if LENGTH == 1 else 6 * LENGTH
STOPS = 2 if LENGTH == 1 else 6 * LENGTH
CLIENTS = 8
SEED = 4
STOCK = 10**9
TOO_MUCH = 10**10
TAKEN = "TAKEN"
KEPT = {"Connection": "keep-alive"}

# What the requests have left, by the names that `Writer` gives them.
FOUND = """
SELECT name FROM items
UNION ALL SELECT 'receipt ' || quantity FROM receipts
UNION ALL SELECT 'order ' || quantity FROM order_lines
UNION ALL SELECT 'cancelled ' || quantity FROM order_lines JOIN orders ON orders.id = order_id
  WHERE status = 'cancelled'
"""

on_both = pytest.mark.backends("sqlite", "pg18")


class Ask(NamedTuple):
    """A request, and the name of what is found of it if it is kept."""

    name: str
    path: str
    body: Mapping[str, Any] | None
    status: int


@dataclass
class Told:
    """What clients were told, by name."""

    kept: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    unanswered: dict[str, float] = field(default_factory=dict)
    """When the request had been sent; infinite if it could not be."""
    cut: set[str] = field(default_factory=set)
    """Those of the above whose answer broke off after its status, which is a promise all the same."""
    answers: Counter[int] = field(default_factory=Counter)

    def __iadd__(self, other: Told) -> Told:
        self.kept |= other.kept
        self.refused |= other.refused
        self.unanswered |= other.unanswered
        self.cut |= other.cut
        self.answers += other.answers
        return self


class Writer(threading.Thread):
    """One client, until the service is gone. It keeps its connection, or makes one for each request."""

    numbers = count(1)

    def __init__(self, port: int, items: Sequence[int], *, seed: int, keeps: bool) -> None:
        super().__init__(name=f"writer {seed}", daemon=True)
        self.told = Told()
        self.failure: BaseException | None = None
        self._port = port
        self._items = items
        self._random = Random(seed)
        self._keeps = keeps
        self._open: list[tuple[int, int]] = []
        self._client: RawClient | None = None

    def run(self) -> None:
        try:
            while self._answered(self._next()):
                pass
        except BaseException as error:  # the test has to know, whatever it is
            self.failure = error
        finally:
            self._leave()

    def _next(self) -> Ask:
        number, choice = next(self.numbers), self._random.random()
        first, second = self._random.sample(self._items, 2)
        item = {"name": f"item {number}", "price": 1}
        if choice < 0.3:
            return Ask(f"item {number}", "/items/", item, 201)
        if choice < 0.4:
            return Ask(f"item {number}", "/items/", {**item, "stock": number, "sku": TAKEN}, 409)
        if choice < 0.6:
            return Ask(f"receipt {number}", f"/items/{first}/receipts", {"quantity": number}, 201)
        if choice < 0.7:
            lines = lines_of([(first, number), (second, TOO_MUCH)])
            return Ask(f"order {number}", "/orders/", {"lines": lines}, 409)
        if choice < 0.85 and self._open:
            order_id, number = self._open.pop()
            return Ask(f"cancelled {number}", f"/orders/{order_id}/cancel", None, 200)
        lines = lines_of([(first, number), (second, number)])
        return Ask(f"order {number}", "/orders/", {"lines": lines}, 201)

    def _answered(self, ask: Ask) -> bool:
        """Ask, and note what came of it; False if nothing did."""
        self.told.unanswered[ask.name] = float("inf")
        try:
            client = self._client = self._client or RawClient(self._port)
            client.request("POST", ask.path, ask.body or b"", KEPT if self._keeps else None)
        except ConnectionError:
            return False
        self.told.unanswered[ask.name] = time.monotonic()
        if not client.arrived(LIMIT) or not (begun := client.peek()):
            return False
        del self.told.unanswered[ask.name]
        status = int(begun.split()[1])
        assert status == ask.status, begun
        self.told.answers[status] += 1
        (self.told.kept if status < 400 else self.told.refused).add(ask.name)
        try:
            answer = whole(client)
        except (IncompleteRead, ConnectionError):
            self.told.cut.add(ask.name)
            return False
        if answer is not None and ask.name.startswith("order") and status == 201:
            self._open.append((answer.json()["id"], int(ask.name.split()[1])))
        if not self._keeps or b"connection: close" in begun.lower():
            self._leave()
        return True

    def _leave(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def whole(client: RawClient) -> RawAnswer | None:
    """The answer, or None if there is not one byte of it; raises if it is cut."""
    answer = client.answer()
    # http.client takes the end of the connection for the end of the head.
    assert answer is None or "content-length" in answer.headers, f"half an answer: {answer}"
    return answer


class Load:
    """Writers at work, and what they were told over all their shifts."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.told = Told()
        service.start()
        client = service.client()
        self._items = [new_item(client, name=f"base {number}", stock=STOCK) for number in range(3)]
        new_item(client, name="base with a SKU", sku=TAKEN)
        self._before = self._found()
        self._writers: list[Writer] = []
        self._seeds = count(SEED)
        print(f"seed {SEED}")  # noqa: T201 - who repeats a failure needs it

    def start(self, workers: int) -> None:
        """Begin a shift, with the service on so many workers."""
        self.service.env["UOW_SERVER__WORKERS"] = str(workers)
        self.service.start()
        self._writers = [
            Writer(self.service.port, self._items, seed=next(self._seeds), keeps=place % 2 == 0)
            for place in range(CLIENTS)
        ]
        for writer in self._writers:
            writer.start()

    def wait_for(self, number: int) -> None:
        """Return when so many of this shift were acknowledged."""

        def enough() -> bool:
            told = sum(len(writer.told.kept) for writer in self._writers)
            return told >= number or not all(map(Writer.is_alive, self._writers))

        wait_until(enough, f"{number} were acknowledged", limit=2 * LIMIT)

    def finish(self) -> Told:
        """Wait until all have noticed that the service is gone; return what they were told in this shift."""
        shift = Told()
        for writer in self._writers:
            writer.join(2 * LIMIT)
            assert not writer.is_alive(), f"{writer.name} waits for ever"
            if writer.failure is not None:
                raise writer.failure
            shift += writer.told
        self.told += shift
        return shift

    def judge(self) -> None:
        """All that was acknowledged is there, nothing of what was refused is, and the sums are right."""
        found, told = self._found() - self._before, self.told
        assert told.kept - found == set()
        assert found - told.kept - told.unanswered.keys() == set()
        assert_sound(self.service.backend)

    def _found(self) -> set[str]:
        return {row[0] for row in self.service.backend.query(FOUND)}

    def figures(self, what: str, times: int) -> str:
        """For who writes them down."""
        told = self.told
        return (
            f"{self.service.backend.name}: {what} {times} times; {len(told.kept)} acknowledged,"
            f" {len(told.refused)} refused, {len(told.cut)} cut, {len(told.unanswered)} unanswered"
        )


def assert_sound(backend: Backend) -> None:
    assert backend.query(BROKEN) == []
    if backend.dialect == "sqlite":
        assert backend.query("PRAGMA integrity_check") == [("ok",)]
        assert backend.query("PRAGMA foreign_key_check") == []


@pytest.fixture
def service(backend: Backend, tmp_path: Path) -> Iterator[Service]:
    """Not started yet."""
    made = Service(backend, tmp_path)
    yield made
    made.close()


@on_both
def test_a_kill_under_load_loses_nothing_acknowledged_and_keeps_nothing_refused(service: Service) -> None:
    """With one worker and with two, in turn; what was under way may be kept or not, but as a whole."""
    load, random = Load(service), Random(SEED)
    for number in range(KILLS):
        load.start(workers=1 + number % 2)
        load.wait_for(random.randint(10, 60))
        service.kill()
        shift = load.finish()
        assert len(shift.unanswered) <= CLIENTS
        service.backend.wait_until_at_rest()
        load.judge()
    assert set(load.told.answers) == {200, 201, 409}
    print(load.figures("kill -9", KILLS))  # noqa: T201 - figures for the documentation


@on_both
def test_a_stop_signal_under_load_refuses_nobody_who_came_before_it(service: Service) -> None:
    """With one worker and with two, in turn. Who comes later is answered as well, or not at all."""
    load, random = Load(service), Random(SEED)
    for number in range(STOPS):
        load.start(workers=1 + number % 2)
        load.wait_for(random.randint(10, 60))
        at = time.monotonic()
        with leaving_nothing(service):
            service.send(signal.SIGTERM)
            shift = load.finish()
        assert [name for name, sent in shift.unanswered.items() if sent < at] == []
        assert shift.cut == set()
        load.judge()
    assert set(load.told.answers) == {200, 201, 409}
    print(load.figures("SIGTERM", STOPS))  # noqa: T201 - figures for the documentation


@contextmanager
def leaving_nothing(service: Service) -> Iterator[None]:
    """The service ends in the block, or after it, in order: without a connection or a lock left behind."""
    backend = service.backend
    before = len(backend.server.log()) if isinstance(backend, PostgresBackend) else 0
    yield
    service.wait_until_gone()
    assert service.terminate() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", service.port), timeout=LIMIT)
    if isinstance(backend, PostgresBackend):
        wait_until(lambda: backend.connections() == 0, "no connection is left")
        assert "open transaction" not in backend.server.log()[before:]
    elif isinstance(backend, SqliteBackend):
        # Who closes the last connection removes it.
        assert not Path(f"{backend.path}-wal").exists()
    backend.wait_until_at_rest()


def serving(service: Service, workers: int) -> list[int]:
    """Start it; return the processes that serve."""
    service.env["UOW_SERVER__WORKERS"] = str(workers)
    service.start()
    found = [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", service.log())]
    assert len(found) == workers
    return found


@contextmanager
def stalled(service: Service, workers: list[int]) -> Iterator[None]:
    """Nothing of the service runs in the block: it is as on a machine that stands still."""
    processes = dict.fromkeys([service.pid, *workers])
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        # The parent last: it would wait for an answer of a worker that stands still.
        for pid in reversed(processes):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.backends("sqlite")
def test_what_was_sent_before_a_stop_signal_is_answered(service: Service, workers: int) -> None:
    """Although nobody had read it, nor even accepted its connection, when the signal came."""
    pids = serving(service, workers)
    kept = [service.raw() for _ in range(4)]
    for client in kept:
        assert whole(client.request("GET", "/livez", headers=KEPT)) is not None
    clients = [*kept, service.raw(), service.raw()]
    with leaving_nothing(service):
        with stalled(service, pids):
            clients += [service.raw() for _ in range(4)]
            for place, client in enumerate(clients):
                client.request("POST", "/items/", {"name": f"item {place}", "price": 1}, KEPT)
            pipelining = kept[0].request("POST", "/items/", {"name": "one more", "price": 1}, KEPT)
            for pid in dict.fromkeys([*pids, service.pid]):
                os.kill(pid, signal.SIGTERM)
        # Of two requests on one connection the second may be left where the first answer closes it
        # (RFC 9112, section 9.3.2): then nothing of it is kept.
        piped = pipelining.read_until_closed().count(b"HTTP/1.1 201")
        assert piped in (1, 2)
        answers = [whole(client) for client in clients[1:]]
        assert {answer and answer.status for answer in answers} == {201}
    names = {f"item {place}" for place in range(len(clients))} | ({"one more"} if piped == 2 else set())
    assert {row[0] for row in service.backend.query("SELECT name FROM items")} == names


@contextmanager
def held(backend: Backend) -> Iterator[None]:
    """No item with stock can be written: on PostgreSQL its receipt waits, on SQLite already its BEGIN."""
    if isinstance(backend, SqliteBackend):
        with closing(backend.connect()) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
    elif isinstance(backend, PostgresBackend):
        with backend.server.connect(backend.dbname) as holder, holder.transaction():
            holder.execute("LOCK TABLE receipts IN SHARE MODE")
            yield


def waiting(service: Service) -> int:
    """How many requests wait for what `held` holds; on SQLite, how many workers have one that does."""
    if isinstance(service.backend, PostgresBackend):
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO receipts%'"
        )
        return int(service.backend.query(sql)[0][0])
    # aiosqlite writes at the level debug what it sends, and what was completed.
    told = [line for line in service.lines() if "BEGIN IMMEDIATE" in line["event"]]
    last = {line.get("worker"): line["event"] for line in told}
    return sum("completed" not in event for event in last.values())


@pytest.mark.parametrize("workers", [1, 2])
@on_both
def test_what_does_not_end_in_the_grace_time_is_rolled_back(service: Service, workers: int) -> None:
    """L12: of a unit that waits for a lock from outside nothing is kept, and nobody reads that it was."""
    service.env |= {"UOW_SERVER__GRACEFUL_SHUTDOWN_TIMEOUT": "1", "UOW_LOGGING__LEVEL": "debug"}
    serving(service, workers)
    assert new_item(service.client(), name="before", stock=1)
    clients = [*service.raw_of_each_worker(workers), *(service.raw() for _ in range(2 * workers))]
    expected = 3 * workers if service.backend.dialect == "postgresql" else workers
    with leaving_nothing(service), held(service.backend):
        for number, client in enumerate(clients):
            client.request("POST", "/items/", {"name": f"never {number}", "price": 1, "stock": 1})
        wait_until(lambda: waiting(service) == expected, "they wait")
        service.send(signal.SIGTERM)
        answers = [whole(client) for client in clients]
        assert {answer and answer.status for answer in answers} <= {None, 500, 503}
        service.wait_until_gone()
    assert "timeout graceful shutdown exceeded" in service.log()
    assert service.backend.query("SELECT name FROM items") == [("before",)]
    assert service.backend.count("receipts") == 1
    assert_sound(service.backend)
