"""256 clients, a pool of 5 and blocking `def` endpoints: whoever has a connection gets on, and gives it back.

The frameworks have 40 threads. If all of them waited for a connection, those who have one could not end:
settling needs a thread, and so do the frameworks for dependencies, exception handlers, the validation of an
answer and each chunk of a sync stream.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.threads_app import CHUNKS
from tests.support.backends import Backend, PostgresBackend, SqliteBackend
from tests.support.client import RawAnswer
from tests.support.server import Serve, UvicornServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.backends("sqlite", "pg18")

CLIENTS = 256
A_MOMENT = 0.01  # seconds between two probes, which are not to be a load of their own
THREADS = 40  # what anyio gives to all `def` endpoints together
REFUSED = ("keep", "refuse", "clash")  # by nobody, by its answer, by the database
LATER = """CREATE TABLE later (id {serial} PRIMARY KEY,
    item INTEGER REFERENCES items(id) DEFERRABLE INITIALLY DEFERRED)"""


@pytest.fixture
def server(tables: None, backend: Backend, serve: Serve) -> UvicornServer:
    serial = "SERIAL" if backend.dialect == "postgresql" else "INTEGER"
    backend.execute(LATER.format(serial=serial))
    started = serve("tests.faults.threads_app:create_app", backend=backend)
    started.client().post(
        "/keep/first"
    ).raise_for_status()  # SQLite goes over to WAL while nobody holds a lock
    return started


@contextlib.contextmanager
def row_locked(backend: Backend) -> Iterator[None]:
    """Nobody gets past the row that all endpoints want, until the end of the block."""
    if isinstance(backend, PostgresBackend):
        with backend.server.connect(backend.dbname) as holder, holder.transaction():
            holder.execute("SELECT n FROM counters FOR UPDATE")
            yield
    elif isinstance(backend, SqliteBackend):
        with contextlib.closing(backend.connect()) as writer:
            writer.execute("BEGIN IMMEDIATE")
            yield
            writer.execute("ROLLBACK")


@contextlib.contextmanager
def alive(server: UvicornServer) -> Iterator[None]:
    """The event loop answers all the time until the end of the block."""
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        client = server.client()
        statuses.append(client.get("/livez").status_code)
        while not over.wait(A_MOMENT):
            statuses.append(client.get("/livez").status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert set(statuses) == {200}


def state(server: UvicornServer) -> dict[str, int]:
    found: dict[str, int] = server.client().get("/state").json()
    return found


def all_at_once(
    server: UvicornServer, backend: Backend, method: str, *endpoints: str, wave: int = 0
) -> list[RawAnswer]:
    """The answers of 256 clients that were all in the app before anyone got past the row."""
    clients = []
    with alive(server), row_locked(backend):
        for number in range(CLIENTS):
            name = f"{endpoints[number % len(endpoints)]}/{wave}-{number}"
            clients.append(server.raw().request(method, f"/{name}"))
        wait_until(lambda: state(server)["inside"] >= CLIENTS, "all requests are in the app")
        wait_until(lambda: state(server)["threads"] >= THREADS, "all threads are taken")
    with alive(server):
        return [answer for client in clients if (answer := client.answer()) is not None]


@pytest.mark.parametrize("endpoint", ["keep", "validated", "depending", "raising", "refused"])
def test_writers_are_all_answered(backend: Backend, server: UvicornServer, endpoint: str) -> None:
    """L23. In two waves: what the first did not give back would be missing in the second."""
    endpoints = REFUSED if endpoint == "refused" else (endpoint,)
    statuses: Counter[int] = Counter()
    for wave in range(2):
        answers = all_at_once(server, backend, "POST", *endpoints, wave=wave)
        statuses.update(answer.status for answer in answers)

    kept = {"raising": 0, "refused": 2 * -(-CLIENTS // 3)}.get(endpoint, 2 * CLIENTS)
    assert statuses == {status: n for status, n in ((201, kept), (409, 2 * CLIENTS - kept)) if n}
    assert backend.count("items") == kept + 1
    assert backend.query("SELECT n FROM counters") == [(kept + 1,)]
    if endpoint in ("keep", "refused"):
        wait_until(lambda: state(server)["called"] >= kept + 1, "the callbacks ran, after the last byte")
        assert state(server)["called"] == kept + 1
    wait_until(lambda: state(server)["threads"] == 0, "no thread is left behind")
    backend.wait_until_at_rest()


def test_settling_needs_none_of_the_threads_that_handlers_can_exhaust(
    backend: Backend, server: UvicornServer
) -> None:
    """L23: COMMIT, ROLLBACK, a `def` handler for a refused COMMIT, and a callback while all threads stand."""
    with row_locked(backend):
        units = [server.raw().request("POST", f"/{endpoint}/a-{endpoint}") for endpoint in REFUSED]
        wait_until(lambda: state(server)["threads"] == len(units), "all units want the row")
        parked = [server.raw().request("GET", f"/park/{number}") for number in range(2 * THREADS)]
        wait_until(lambda: state(server)["inside"] == len(units) + len(parked), "all are in the app")
        wait_until(lambda: state(server)["threads"] >= THREADS, "all threads are taken")
    assert [answer and answer.status for answer in (client.answer() for client in units)] == [201, 409, 409]
    wait_until(lambda: state(server)["called"] >= 2, "the callbacks ran, after the last byte")
    assert state(server)["called"] == 2
    wait_until(lambda: state(server)["inside"] <= len(parked), "the units have left, after the last byte")
    assert state(server)["inside"] == len(parked)

    server.client().get("/unpark").raise_for_status()
    assert {answer and answer.status for answer in (client.answer() for client in parked)} == {200}
    backend.wait_until_at_rest()


@pytest.mark.parametrize("endpoint", ["read", "stream", "stream_on"])
def test_readers_are_all_answered(backend: Backend, server: UvicornServer, endpoint: str) -> None:
    """L15, L23: each chunk of a sync generator needs a thread of its own, while its unit has a connection."""
    for _ in range(2):
        with alive(server):
            clients = [server.raw().request("GET", f"/{endpoint}/{number}") for number in range(CLIENTS)]
            answers = [client.answer() for client in clients]
        assert Counter(None if answer is None else answer.status for answer in answers) == {200: CLIENTS}
        if endpoint != "read":
            bodies = [answer.body.decode() for answer in answers if answer is not None]
            assert bodies == ["".join(f"{n} {chunk}\n" for chunk in range(CHUNKS)) for n in range(CLIENTS)]
    wait_until(lambda: state(server)["threads"] == 0, "no thread is left behind")
    backend.wait_until_at_rest()
