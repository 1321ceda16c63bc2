"""Many clients at once against one server, and what each of them was told."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

from tests.support.wait import LIMIT


@dataclass(frozen=True)
class Answer:
    """What a client was told of one request."""

    path: str
    status: int
    retry_after: str | None
    body: str

    @property
    def may_come_again(self) -> bool:
        """It is a 503 that says when to come back."""
        return self.status == 503 and self.retry_after is not None


def ask(connection: http.client.HTTPConnection, path: str, method: str = "POST") -> Answer:
    connection.request(method, path)
    response = connection.getresponse()
    retry_after = response.getheader("Retry-After")
    return Answer(path, response.status, retry_after, response.read().decode())


def storm(port: int, *, clients: int, rounds: int, path: Callable[[int, int], str]) -> list[Answer]:
    """Each client asks for `path(client, round)`, one after the other, on a connection of its own."""
    together = threading.Barrier(clients)

    def client(number: int) -> list[Answer]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=4 * LIMIT)) as connection:
            together.wait(LIMIT)
            return [ask(connection, path(number, turn)) for turn in range(rounds)]

    with ThreadPoolExecutor(clients) as pool:
        return [answer for answers in pool.map(client, range(clients)) for answer in answers]


@dataclass
class Load:
    """Clients that go on until they are told to stop; each name is asked for once."""

    answers: list[Answer] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    """The paths whose requests got no answer."""

    def acknowledged(self) -> int:
        return sum(answer.status == 200 for answer in list(self.answers))

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in list(self.answers))


@contextmanager
def load(port: int, *, writers: int, readers: int, prefix: str) -> Iterator[Load]:
    """Writers that insert, and readers that count, for as long as the block lasts."""
    told, stopping = Load(), threading.Event()

    def client(method: str, path: Callable[[int], str]) -> None:
        turn = 0
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=4 * LIMIT)) as connection:
            while not stopping.is_set():
                turn += 1
                try:
                    told.answers.append(ask(connection, path(turn), method))
                except (OSError, http.client.HTTPException):
                    told.cut.append(path(turn))
                    connection.close()

    def named(number: int, turn: int) -> str:
        return f"{prefix}{number}-{turn}"

    with ThreadPoolExecutor(writers + readers) as pool:
        running = [pool.submit(client, "POST", partial(named, number)) for number in range(writers)]
        running += [pool.submit(client, "GET", lambda _: "/count") for _ in range(readers)]
        try:
            yield told
        finally:
            stopping.set()
        for each in running:
            each.result()
