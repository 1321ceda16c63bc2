"""One key at two processes, of which the first is killed: what a repeat is told, at each moment.

The test itself holds SQLite's one writer, so that the first request gets no further than its key. PostgreSQL
has its row locks for this: `tests/uow/test_idempotency_waits.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.api.service import Service, new_item
from tests.faults.keyed_storm import Answer, order_of, send
from tests.support.backends import SqliteBackend
from tests.support.wait import wait_until

IN_USE = (409, "/problems/idempotency-key-in-use")
BUSY = (503, "/problems/serialization-failure")


@pytest.fixture
def services(sqlite: SqliteBackend, tmp_path: Path) -> Iterator[list[Service]]:
    """Two processes on one file; the second one is impatient."""
    made = [Service(sqlite, tmp_path / "a"), Service(sqlite, tmp_path / "b", pool_timeout=0.2)]
    made[1].env |= {"UOW_IDEMPOTENCY__WAIT": "0.2", "UOW_UNIT_OF_WORK__RETRY_ATTEMPTS": "1"}
    for each in made:
        each.start()
    yield made
    for each in made:
        each.close()


def test_a_key_is_in_use_for_as_long_as_the_process_lives_that_works_on_it(
    sqlite: SqliteBackend, services: list[Service]
) -> None:
    working, other = services
    body = order_of(new_item(other.client(), stock=10))

    def told(key: str) -> tuple[int, str]:
        answer, problem = send(other.port, "/orders/", body, key)
        return answer.status, problem

    def first_request() -> None:
        with suppress(OSError, HTTPException):  # it is killed before it answers
            answers.append(send(working.port, "/orders/", body, "k-1")[0])

    answers: list[Answer] = []
    first = threading.Thread(target=first_request)
    with closing(sqlite.connect()) as writer:
        writer.execute("BEGIN IMMEDIATE")
        first.start()
        wait_until(lambda: told("k-1") == IN_USE, "the first request works on its key")
        assert [told("k-1"), told("k-2")] == [IN_USE, BUSY]

        working.kill()
        first.join()
        assert answers == []
        assert told("k-1") == BUSY  # nobody works on it any more
        writer.execute("ROLLBACK")

    again, _ = send(other.port, "/orders/", body, "k-1")
    assert (again.status, again.replayed) == (201, False)
    working.start()
    repeat, _ = send(working.port, "/orders/", body, "k-1")
    assert (repeat.said, repeat.replayed) == (again.said, True)
    assert sqlite.count("orders") == sqlite.count("idempotency_keys") == 1
