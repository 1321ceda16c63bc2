"""Several processes on one database: nothing is lost between them, at their end, or when one is killed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any

import httpx
import pytest
import uvicorn

from api.commands.processes import Workers
from tests.api.load import Crowd, assert_kept, assert_nothing_else, watched
from tests.api.service import Service, new_item
from tests.support.backends import Backend, PostgresBackend, SqliteBackend
from tests.support.processes import is_running
from tests.support.wait import LIMIT, wait_until

WORKERS = 2
CUSTOMERS = 8
KEPT = httpx.Limits(max_keepalive_connections=1)


@pytest.fixture
def workers(own_service: Service) -> Service:
    """The service with two workers, which serve."""
    own_service.env["UOW_SERVER__WORKERS"] = str(WORKERS)
    own_service.start()
    return own_service


def pids(service: Service) -> set[int]:
    """The processes that have served a request so far."""
    return {line["worker"] for line in service.lines() if line["event"] == "request"}


def client_of_each_worker(service: Service) -> dict[int, httpx.Client]:
    """A client with an open connection to each worker."""
    clients: dict[int, httpx.Client] = {}
    for _ in range(100):
        client = service.client(limits=KEPT)
        clients.setdefault(service.line_of(client.get("/livez"))["worker"], client)
        if len(clients) == WORKERS:
            return clients
    raise AssertionError(f"only {set(clients)} serve")


def test_two_workers_lose_no_update_and_fail_no_request(workers: Service) -> None:
    backend = workers.backend
    clients = client_of_each_worker(workers)
    items = [new_item(client, stock=20) for client in [*clients.values()] * 2]
    with watched(backend) as looks:
        crowd = Crowd(workers.base_url, items, customers=CUSTOMERS, steps=25, seed=7)
        crowd.start()
        ledger = crowd.finish()
    assert crowd.failures == []
    assert set(ledger.answers) == {200, 201, 409}
    assert sum(ledger.answers.values()) == CUSTOMERS * 25
    assert [look for look in looks if look != []] == []
    assert_kept(backend, ledger)
    assert_nothing_else(backend, ledger, first_receipts=len(items))
    # Each worker reads what the other has written.
    for client in clients.values():
        assert client.get(f"/orders/{max(ledger.orders)}").json()["id"] == max(ledger.orders)
    posts = {line["worker"] for line in workers.lines() if line.get("method") == "POST"}
    assert len(posts) == WORKERS
    backend.wait_until_at_rest()


@contextmanager
def writers_held(service: Service) -> Iterator[Callable[[], int]]:
    """Nobody else can write meanwhile; yields what counts the workers in which somebody tries."""
    backend = service.backend
    if isinstance(backend, SqliteBackend):
        with closing(backend.connect()) as other:
            other.execute("BEGIN IMMEDIATE")
            yield lambda: len(_beginning(service.lines()))
            other.execute("ROLLBACK")
    elif isinstance(backend, PostgresBackend):
        with backend.server.connect(backend.dbname) as holder, holder.transaction():
            holder.execute("LOCK TABLE items IN SHARE ROW EXCLUSIVE MODE")
            yield lambda: _waiting(backend)


def _beginning(lines: list[dict[str, Any]]) -> set[int]:
    """The workers whose last word on BEGIN is that it was sent; aiosqlite writes it at the level debug."""
    told = [line for line in lines if "worker" in line and "BEGIN IMMEDIATE" in line["event"]]
    last = {line["worker"]: line["event"] for line in told}
    return {worker for worker, event in last.items() if "completed" not in event}


def _waiting(backend: Backend) -> int:
    rows = backend.query(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'INSERT%'"
    )
    return int(rows[0][0])


def test_what_is_under_way_is_answered_after_a_stop_signal(own_service: Service) -> None:
    own_service.env |= {"UOW_SERVER__WORKERS": str(WORKERS), "UOW_LOGGING__LEVEL": "debug"}
    own_service.start()
    clients = client_of_each_worker(own_service)
    body = {"name": "Under way", "price": 1}
    with ThreadPoolExecutor(WORKERS) as pool:
        with writers_held(own_service) as trying:
            answers = [pool.submit(client.post, "/items/", json=body) for client in clients.values()]
            wait_until(lambda: trying() == WORKERS, "a request is under way in each worker")
            own_service.send(signal.SIGTERM)
            wait_until(lambda: own_service.log().count("Shutting down") == WORKERS, "each was told")
            with pytest.raises(httpx.TransportError):
                own_service.client().get("/livez")
            assert not any(answer.done() for answer in answers)
        assert [answer.result().status_code for answer in answers] == [201] * WORKERS
    own_service.wait_until_gone()
    assert own_service.terminate() == 0
    assert own_service.log().count("Finished server process") == WORKERS
    assert own_service.backend.count("items") == WORKERS
    assert "Traceback" not in own_service.log()
    own_service.backend.wait_until_at_rest()


def test_a_stop_signal_before_all_workers_serve_is_no_failure(
    own_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_service.env |= {"UOW_SERVER__WORKERS": str(WORKERS)}
    monkeypatch.setattr(own_service, "_is_up", lambda news: "Started parent process" in news)
    own_service.start()
    own_service.send(signal.SIGTERM)
    own_service.wait_until_gone()
    assert own_service.terminate() == 0
    assert "Traceback" not in own_service.log()


def test_a_stop_signal_under_load_loses_nothing_and_leaves_nothing_half_done(workers: Service) -> None:
    backend = workers.backend
    items = [new_item(workers.client(), stock=50) for _ in range(4)]
    crowd = Crowd(workers.base_url, items, customers=CUSTOMERS, steps=10_000, seed=11)
    crowd.start()
    wait_until(lambda: crowd.acknowledged >= 60 or bool(crowd.failures), "enough was acknowledged")
    assert workers.terminate() == 0
    ledger = crowd.finish()
    assert ledger.acknowledged >= 60
    assert all(isinstance(failure, httpx.TransportError) for failure in crowd.failures)
    assert set(ledger.answers) <= {200, 201, 409}
    assert_kept(backend, ledger)
    # Who was not answered was not served: the last requests were finished, and no other was begun.
    assert_nothing_else(backend, ledger, first_receipts=len(items))
    assert workers.log().count("Finished server process") == WORKERS
    assert "Traceback" not in workers.log()
    backend.wait_until_at_rest()


def test_a_worker_that_is_killed_is_replaced_and_what_it_acknowledged_is_kept(workers: Service) -> None:
    backend = workers.backend
    items = [new_item(workers.client(), stock=50) for _ in range(4)]
    before = set(client_of_each_worker(workers))
    crowd = Crowd(workers.base_url, items, customers=CUSTOMERS, steps=60, seed=13)
    crowd.start()
    wait_until(lambda: crowd.acknowledged >= 60 or bool(crowd.failures), "enough was acknowledged")
    # By luck all customers may be those of one worker: then the other one is killed.
    asked = Counter(line["worker"] for line in workers.lines() if line.get("route") == "/orders/")
    victim, other = sorted(before, key=lambda pid: asked[pid])
    os.kill(victim, signal.SIGKILL)
    ledger = crowd.finish()
    # The customers of the other worker, and whoever comes new, notice nothing.
    assert len(crowd.failures) < CUSTOMERS
    assert all(isinstance(failure, httpx.TransportError) for failure in crowd.failures)
    assert set(ledger.answers) <= {200, 201, 409}
    assert_kept(backend, ledger)
    up = "Application startup complete."
    wait_until(lambda: workers.log().count(up) == WORKERS + 1, "another was started")
    wait_until(lambda: set(client_of_each_worker(workers)) - before != set(), "the new one serves")
    assert set(client_of_each_worker(workers)) - before != {other}
    assert not is_running(victim)
    assert workers.terminate() == 0
    backend.wait_until_at_rest()


def test_a_worker_that_dies_while_it_is_asked_is_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its silence would be waited for, for a minute in which the parent hears no signal either."""

    def dying(config: object, target: Any, sockets: object) -> BaseProcess:
        return get_context("spawn").Process(target=_die_when_asked, args=(target.__self__.child_conn,))

    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own handlers
    monkeypatch.setattr("uvicorn.supervisors.multiprocess.get_subprocess", dying)
    silence = int(4 * LIMIT)
    config = uvicorn.Config("unused:app", workers=1, timeout_worker_healthcheck=silence, log_config=None)
    workers = Workers(config, [], partial(lambda: None))
    workers.init_processes()
    (first,) = workers.processes
    began = monotonic()
    workers.keep_subprocess_alive()
    assert monotonic() - began < silence
    (second,) = workers.processes
    assert second is not first
    second.kill()
    second.join()


def _die_when_asked(asked: Connection) -> None:
    asked.recv()
    os._exit(1)


@pytest.mark.parametrize("service_leg", ["sqlite"], indirect=True)
def test_workers_end_in_order_when_their_parent_is_killed(workers: Service) -> None:
    served = set(client_of_each_worker(workers))
    os.kill(workers.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, served)), "the workers have ended", limit=2 * LIMIT)
    assert workers.log().count("the parent process is gone") == WORKERS
    assert workers.log().count("Finished server process") == WORKERS
    # So the port is free again.
    workers.start()
    assert workers.client().get("/readyz").status_code == 200
    assert workers.terminate() == 0
