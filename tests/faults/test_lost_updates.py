"""No update is ever lost on SQLite, and nobody is refused."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.support.backends import SqliteBackend
from tests.support.server import UvicornServer
from tests.support.wait import LIMIT

CLIENTS = 16
ROUNDS = 25


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize("kinds", [("async",), ("sync",), ("async", "sync")], ids="-and-".join)
def test_sixteen_clients_that_read_change_and_write_lose_nothing(
    backend: SqliteBackend, server: UvicornServer, kinds: tuple[str, ...]
) -> None:
    """16 clients, 25 times each: 400 acknowledged, 400 in the row, every value answered once."""

    def client(number: int) -> list[tuple[int, bytes]]:
        path = f"/{kinds[number % len(kinds)]}/increment"
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)) as connection:
            answers = []
            for _ in range(ROUNDS):
                connection.request("POST", path)
                response = connection.getresponse()
                answers.append((response.status, response.read()))
            return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [answer for one in pool.map(client, range(CLIENTS)) for answer in one]

    assert {status for status, _ in answers} == {200}
    assert backend.query("SELECT n FROM counters") == [(CLIENTS * ROUNDS,)]
    assert sorted(int(body[5:-1]) for _, body in answers) == list(range(1, CLIENTS * ROUNDS + 1))
    backend.wait_until_at_rest()
