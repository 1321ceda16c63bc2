"""Clients that do as docs/exactly-once.md says: the same request with the same key, until it is answered."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep

from tests.support.wait import LIMIT

CLIENTS = 5
LANES = 4
_AGAIN = (409, 500, 503)
_PAUSE = 0.02
_HEADERS = ("content-type", "etag", "location")


@dataclass(frozen=True)
class Answer:
    """What one client was told in the end."""

    status: int
    headers: tuple[str | None, ...]
    body: bytes
    replayed: bool

    @property
    def said(self) -> tuple[int, tuple[str | None, ...], bytes]:
        """What has to be the same for all who have sent a key."""
        return self.status, self.headers, self.body


@dataclass
class Told:
    """The answers by key, and how often a client had to try again, for which reason."""

    answers: defaultdict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    again: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """How many keys have all of their answers."""
        return sum(len(answers) == CLIENTS for answers in list(self.answers.values()))


def order_of(item: int) -> bytes:
    """The body of an order of one piece."""
    return json.dumps({"lines": [{"item_id": item, "quantity": 1}]}).encode()


def send(port: int, path: str, body: bytes, key: str) -> tuple[Answer, str]:
    """One request on a connection of its own; its answer, and the type of its problem."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=4 * LIMIT)) as connection:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        told = response.read()
    kept = tuple(response.getheader(name) for name in _HEADERS)
    answer = Answer(response.status, kept, told, response.getheader("Idempotency-Replayed") == "true")
    return answer, json.loads(told)["type"] if answer.status >= 400 else ""


def ask(told: Told, ports: list[int], path: str, body: bytes, key: str, first: int) -> None:
    """Send it to one server after the other until it is answered for good."""
    until = monotonic() + 8 * LIMIT
    turn = first
    while monotonic() < until:
        turn += 1
        try:
            answer, problem = send(ports[turn % len(ports)], path, body, key)
        except (OSError, http.client.HTTPException) as error:
            told.again[type(error).__name__] += 1
            sleep(_PAUSE)
            continue
        if answer.status not in _AGAIN:
            told.answers[key].append(answer)
            return
        told.again[problem] += 1
        sleep(_PAUSE)
    raise AssertionError(f"{key} was never answered: {told.again}")


@contextmanager
def storm(ports: list[int], keys: list[str], path: str, body: Callable[[str], bytes]) -> Iterator[Told]:
    """Each key is sent by five clients at once, to all servers in turn; the block's end waits for all."""
    told = Told()
    gates = [threading.Barrier(CLIENTS) for _ in range(LANES)]

    def client(lane: int, number: int) -> None:
        for key in keys[lane::LANES]:
            gates[lane].wait(16 * LIMIT)
            ask(told, ports, path, body(key), key, number)

    with ThreadPoolExecutor(LANES * CLIENTS) as pool:
        running = [pool.submit(client, lane, number) for lane in range(LANES) for number in range(CLIENTS)]
        try:
            yield told
            for each in running:
                each.result()
        finally:
            for gate in gates:
                gate.abort()


def assert_once(told: Told, keys: list[str]) -> None:
    """All clients of a key were told the same, and no two keys the same."""
    assert sorted(told.answers) == sorted(keys)
    for key, answers in told.answers.items():
        assert len(answers) == CLIENTS
        assert {answer.status for answer in answers} == {201}, key
        assert len({answer.said for answer in answers}) == 1, key
        assert sum(not answer.replayed for answer in answers) <= 1, key
    assert len({answers[0].body for answers in told.answers.values()}) == len(keys)
