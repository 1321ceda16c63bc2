"""A peer's app in a server process of its own, on a database of its own, and the ways to look at both."""

import contextlib
import http.client
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx

from benchmarks.hazards.findings import error_word, succeeded
from benchmarks.hazards.peers import Peer
from tests.support.backends import Backend, PostgresBackend
from tests.support.client import RawClient
from tests.support.hold import CommitHold, hold_commits
from tests.support.server import UvicornServer
from tests.support.wait import NeverHappened, wait_until

LIMIT = 15.0
"""Seconds after which a request counts as hanging."""

REST = 3.0
"""Seconds after which a connection counts as not given back."""

_TABLES = """
CREATE TABLE parents (id INTEGER PRIMARY KEY);
CREATE TABLE items (
    id {serial} PRIMARY KEY, name VARCHAR UNIQUE NOT NULL,
    parent_id INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE counters (id INTEGER PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO counters VALUES (1, 0);
"""


class Hanging(Exception):
    """A request got no answer in time."""


class Stage:
    """What a hazard works with."""

    def __init__(self, peer: Peer, backend: Backend, server: UvicornServer) -> None:
        self.peer = peer
        self.backend = backend
        self.server = server
        self.client = server.client(timeout=LIMIT, verify=False)

    # Asking

    def ask(self, method: str, path: str, name: str = "a", **options: Any) -> int | None:
        """The status of the answer; None if the connection ended without a whole one."""
        try:
            answer = self.client.request(
                method, path, params={"name": name, **options.pop("params", {})}, **options
            )
        except httpx.ReadTimeout as error:
            raise Hanging(f"no answer within {LIMIT:g} s") from error
        except httpx.TransportError:
            return None
        return answer.status_code

    def post(self, path: str, name: str = "a", **options: Any) -> int | None:
        return self.ask("POST", path, name, **options)

    def raw(
        self, method: str, path: str, name: str = "a", headers: Mapping[str, str] | None = None
    ) -> RawClient:
        """A request under way, on a bare connection."""
        return self.server.raw().request(method, f"{path}?name={name}", headers=headers)

    def whole(self, client: RawClient) -> bytes | None:
        """The body on a bare connection; None if it breaks off."""
        if not client.arrived(within=LIMIT):
            raise Hanging(f"no answer within {LIMIT:g} s")
        try:
            answer = client.answer()
        except TimeoutError as error:
            raise Hanging("the body does not end") from error
        except (http.client.HTTPException, OSError):
            return None
        return answer.body if answer is not None and answer.status == 200 else None

    def status(self, client: RawClient) -> int | None:
        """The status of the answer on a bare connection, or None."""
        if not client.arrived(within=LIMIT):
            raise Hanging(f"no answer within {LIMIT:g} s")
        line = client.peek().split(b"\r\n", 1)[0].split(b" ")
        return int(line[1]) if len(line) > 1 else None

    def many(self, path: str, clients: int, each: int, names: str = "n") -> tuple[int, dict[str, int]]:
        """So many clients at once: how many requests succeeded, and the others by what became of them."""

        def one(client: int) -> list[str]:
            return [self._outcome(path, f"{names}-{client}-{number}") for number in range(each)]

        with ThreadPoolExecutor(clients) as pool:
            outcomes = [outcome for found in pool.map(one, range(clients)) for outcome in found]
        failed = {word: outcomes.count(word) for word in sorted(set(outcomes)) if word != "ok"}
        return outcomes.count("ok"), failed

    def _outcome(self, path: str, name: str) -> str:
        try:
            status = self.post(path, name)
        except Hanging:
            return "hang"
        return "ok" if succeeded(status) else error_word(status)

    # Looking

    def seen(self, name: str = "a") -> dict[str, Any]:
        """What the app's watcher knows of the requests of that name."""
        try:
            answer = self.client.get("/__seen", params={"name": name})
        except httpx.ReadTimeout as error:
            raise Hanging("the whole server stands still") from error
        return cast("dict[str, Any]", answer.json())

    def told(self, name: str = "a") -> list[str]:
        return cast("list[str]", self.seen(name)["told"])

    def wait_until_told(self, *what: str, name: str = "a") -> None:
        """Return when the app has told something that begins so."""
        wait_until(lambda: any(each.startswith(what) for each in self.told(name)), what[0], limit=LIMIT)

    def wait_until_through(self) -> None:
        """Return when every request is over, its background tasks and commits included."""
        try:
            wait_until(lambda: self.seen()["in_flight"] == 0, "every request is over", limit=LIMIT)
        except NeverHappened as error:
            raise Hanging("the request does not end") from error

    def rows(self, name: str = "a") -> int:
        """How many items of that name, or that name and a suffix, a second connection finds."""
        sql = "SELECT count(*) FROM items WHERE name = ? OR name LIKE ?"
        return int(self.backend.query(sql, (name, f"{name}-%"))[0][0])

    def counter(self) -> int:
        return int(self.backend.query("SELECT value FROM counters WHERE id = 1")[0][0])

    def release(self, name: str = "a") -> None:
        """Let the handler go on that stands at its gate."""
        self.wait_until_told("waiting", name=name)
        self.client.post("/__release", params={"name": name})

    def reset(self) -> None:
        """Forget all that was told, and empty the tables: as a fresh server on a fresh database."""
        self.client.post("/__reset")
        empty_tables(self.backend)

    @contextlib.contextmanager
    def held(self) -> Iterator[CommitHold]:
        """Every COMMIT that changed an item stands, until it is released."""
        with hold_commits(self.backend, "items") as hold:
            yield hold

    def leaks(self) -> bool:
        """A connection is not given back, or is idle in a transaction, though every request is over."""
        if not self.server.alive:
            return False

        def given_back() -> bool:
            seen = self.seen()
            return bool(
                seen.get("checkout", 0) == seen.get("checkin", 0) and self.backend.idle_in_transaction() == 0
            )

        try:
            wait_until(given_back, "all connections are given back", limit=REST)
        except NeverHappened:
            return True
        # A connection that only the garbage collector gives back is lost until then; the pool says so.
        self.client.post("/__collect")
        return "non-checked-in connection" in self.server.log()


def make_tables(backend: Backend) -> None:
    """The tables of the app."""
    backend.execute(_TABLES.format(serial="SERIAL" if isinstance(backend, PostgresBackend) else "INTEGER"))


def empty_tables(backend: Backend) -> None:
    """As they were when they were made, and nobody who holds a COMMIT."""
    if isinstance(backend, PostgresBackend):
        backend.execute("DROP TRIGGER IF EXISTS tests_hold ON items")
    backend.execute("DELETE FROM items; UPDATE counters SET value = 0")
