"""The relay inside of `serve`, with two workers: they share the work, and another one takes over.

`make faults` also waits until the lease of a worker that was killed is over, which is half a minute.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.service import Service, new_item
from tests.faults.receiver import Receiver
from tests.support.backends import Backend
from tests.support.wait import LIMIT, wait_until

LONG = "FAULTS" in os.environ
EVENTS = 10

pytestmark = pytest.mark.backends("sqlite", "pg18")


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def service(backend: Backend, receiver: Receiver, tmp_path: Path) -> Iterator[Service]:
    """Two workers, of which each has one event on its way at a time; started by the test."""
    made = Service(backend, tmp_path)
    with receiver.serving() as url:
        made.env |= {
            "UOW_SERVER__WORKERS": "2",
            "UOW_OUTBOX__DESTINATIONS": json.dumps([{"name": "shop", "url": url}]),
            "UOW_OUTBOX__RELAY": "true",
            "UOW_OUTBOX__CONCURRENCY": "1",
            "UOW_OUTBOX__POLL": "100ms",
            "UOW_OUTBOX__FIRST_DELAY": "100ms",
        }
        yield made
        made.close()


def publish(service: Service, number: int) -> list[int]:
    """So many items, each of which is an event of its own subject."""
    client = service.client()
    return [new_item(client) for _ in range(number)]


def workers_of(service: Service) -> list[int]:
    """The processes that serve, the latest last."""
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", service.log())]


def leased(backend: Backend) -> set[str]:
    """The subjects of the events that somebody has claimed."""
    rows = backend.query("SELECT subject FROM outbox_events WHERE token IS NOT NULL")
    return {subject for (subject,) in rows}


def wait_until_sent(backend: Backend, *, limit: float = LIMIT) -> None:
    wait_until(lambda: backend.count("outbox_events") == 0, "all is sent", limit=limit)


@contextmanager
def both_sending(service: Service, receiver: Receiver) -> Iterator[list[int]]:
    """Each worker has an event under way, and gets no answer in the block; gives all items there are."""
    service.start()
    receiver.gate.clear()
    try:
        items = publish(service, EVENTS)
        wait_until(lambda: receiver.waiting >= 2, "both are sending")
        yield items
    finally:
        receiver.gate.set()


def test_workers_share_the_work_and_a_stop_signal_lets_what_is_under_way_arrive(
    backend: Backend, service: Service, receiver: Receiver
) -> None:
    """Nothing more is begun; that is sent by whoever comes next, and nothing comes twice."""
    with both_sending(service, receiver) as items:
        assert len(leased(backend)) == 2
        service.send(signal.SIGTERM)
        wait_until(lambda: service.log().count("Waiting for application shutdown") == 2, "both are stopping")
        assert service.alive
    service.wait_until_gone()
    assert service.terminate() == 0
    assert len(receiver.received) == 2
    assert backend.count("outbox_events") == EVENTS - 2
    assert leased(backend) == set()

    service.start()
    wait_until_sent(backend)
    assert receiver.repeats == {}
    assert sorted(event["data"]["item_id"] for event in receiver.received) == items


def test_a_receiver_that_never_answers_holds_up_the_end_for_one_timeout_only(
    backend: Backend, service: Service, receiver: Receiver
) -> None:
    """Then it is a failure as any other: written down, and nobody has to wait for a lease."""
    service.env["UOW_OUTBOX__TIMEOUT"] = "3s"
    with both_sending(service, receiver):
        at = time.monotonic()
        assert service.terminate() == 0
        print(f"{backend.name}: ended {time.monotonic() - at:.1f} s after SIGTERM")  # noqa: T201 - a figure for the documentation
    errors = backend.query("SELECT error FROM outbox_events WHERE error IS NOT NULL")
    assert errors
    assert all(error.startswith("TimeoutError") for (error,) in errors)
    assert leased(backend) == set()
    assert backend.count("outbox_events") == EVENTS


def test_what_a_killed_worker_was_sending_is_sent_again_when_its_lease_is_over(
    backend: Backend, service: Service, receiver: Receiver
) -> None:
    """With the same id; only its own subject waits for that, and keeps its order."""
    with both_sending(service, receiver) as items:
        at = time.monotonic()
        os.kill(workers_of(service)[0], signal.SIGKILL)
    wait_until(lambda: backend.count("outbox_events") == 1, "all others are sent")
    (stuck,) = leased(backend)
    client = service.client()
    for item in items:
        assert client.post(f"/items/{item}/receipts", json={"quantity": 1}).status_code == 201
    wait_until(lambda: backend.count("outbox_events") == 2, "only those of its subject wait")
    assert backend.query("SELECT DISTINCT subject FROM outbox_events") == [(stuck,)]

    if not LONG:
        backend.execute("UPDATE outbox_events SET due = 0")
    wait_until_sent(backend, limit=3 * LIMIT)
    print(f"{backend.name}: taken over {time.monotonic() - at:.1f} s after the kill")  # noqa: T201 - a figure for the documentation

    (repeat,) = receiver.repeats
    firsts = receiver.firsts
    assert [event["subject"] for event in firsts if event["id"] == repeat] == [stuck]
    assert len(firsts) == 2 * EVENTS
    for item in items:
        told = [event["type"] for event in firsts if event["subject"] == f"items/{item}"]
        assert told == ["item.created", "item.received"]
