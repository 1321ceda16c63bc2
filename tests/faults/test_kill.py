"""A server that is killed with -9: what it has acknowledged is there, what it has not was never told."""

from __future__ import annotations

import http.client
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count

import pytest

from tests.support.backends import Backend
from tests.support.hold import hold_commits
from tests.support.server import UvicornServer
from tests.support.wait import LIMIT, wait_until

# Of the held clients, SQLite has one in COMMIT and the others in its queue; PostgreSQL has all in COMMIT.
# So the window is hit 6 and 14 times: 20.
WINDOWS = {"sqlite": [("async", "sync", "async")] * 3 + [("sync", "async", "sync")] * 3, "pg18": []}
WINDOWS["pg18"] = [("async", "sync") * 3 + ("async",), ("sync", "async") * 3 + ("sync",)]  # type: ignore[list-item]  # tuples of other lengths


def saved(backend: Backend) -> set[str]:
    return {row[0] for row in backend.query("SELECT name FROM items")}


def assert_sound(backend: Backend) -> None:
    if backend.dialect == "sqlite":
        assert backend.query("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.backends("sqlite", "pg18")
def test_not_one_byte_leaves_before_commit_and_a_kill_then_loses_nothing_acknowledged(
    backend: Backend, server: UvicornServer
) -> None:
    """L1: COMMIT is held open from outside, and the server killed in that window."""
    acknowledged = set()
    with hold_commits(backend, "items") as hold:
        for number, modes in enumerate(WINDOWS[backend.name]):
            hold.release()
            name = f"{number}-acknowledged"
            assert server.client().post(f"/{modes[0]}/items/{name}").status_code == 201
            acknowledged.add(name)

            hold.hold()
            clients = [
                server.raw().request("POST", f"/{mode}/items/{number}-{place}-held")
                for place, mode in enumerate(modes)
            ]
            hold.wait_until_waiting(1 if backend.dialect == "sqlite" else len(modes))
            assert not any(client.arrived() for client in clients)
            assert not {name for name in saved(backend) if name.startswith(f"{number}-") and "held" in name}

            server.kill()
            assert [client.read_until_closed() for client in clients] == [b""] * len(clients)
            hold.release()
            server.start()
            backend.wait_until_at_rest()
            assert acknowledged <= saved(backend)
    assert len(acknowledged) == len(WINDOWS[backend.name])
    assert_sound(backend)


@pytest.mark.backends("sqlite", "pg18")
def test_a_kill_under_load_loses_nothing_that_was_acknowledged(
    backend: Backend, server: UvicornServer
) -> None:
    """Eight writers, three kills: beyond what was acknowledged only what was under way is saved."""
    numbers = count()
    acknowledged: set[str] = set()
    asked: set[str] = set()
    for _ in range(3):
        enough = len(acknowledged) + 25
        stopping = threading.Event()

        def write(worker: int, stopping: threading.Event = stopping) -> None:
            mode = ("async", "sync")[worker % 2]
            with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)) as connection:
                while not stopping.is_set():
                    name = f"n{next(numbers)}"
                    asked.add(name)
                    try:
                        connection.request("POST", f"/{mode}/items/{name}")
                        answer = connection.getresponse()
                        answer.read()
                    except (OSError, http.client.HTTPException):
                        return
                    assert answer.status == 201
                    acknowledged.add(name)

        with ThreadPoolExecutor(8) as pool:
            writers = [pool.submit(write, worker) for worker in range(8)]
            try:
                wait_until(lambda enough=enough: len(acknowledged) > enough, "writes were acknowledged")  # type: ignore[misc]  # a default binds the loop's variable
                server.kill()
            finally:
                stopping.set()
            for writer in writers:
                writer.result()
        server.start()
        backend.wait_until_at_rest()
        assert acknowledged <= saved(backend) <= asked
    assert len(asked - acknowledged) <= 3 * 8
    assert_sound(backend)
