"""A running server with its database, as the tests of this folder speak to it."""

import json
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.backends import Backend, Mode
from tests.support.client import RawClient
from tests.support.server import UvicornServer
from tests.support.wait import wait_until


@dataclass
class Service:
    """One app under test: its cases below `/async` or `/sync`, and what a second connection finds."""

    server: UvicornServer
    backend: Backend
    mode: Mode
    client: httpx.Client
    stack: str = ""
    """Which of the server's stacks to speak to; "" is the one at its root."""

    def request(self, method: str, case: str, **params: Any) -> httpx.Response:
        """The answer to a request."""
        return self.client.request(method, self.path(case), params=params)

    def post(self, case: str, **params: Any) -> httpx.Response:
        """The answer to a POST."""
        return self.request("POST", case, **params)

    def get(self, case: str, **params: Any) -> httpx.Response:
        """The answer to a GET."""
        return self.request("GET", case, **params)

    def send(self, method: str, case: str, **params: Any) -> RawClient:
        """Send a request and wait for nothing."""
        path = f"{self.path(case)}?{httpx.QueryParams(params)}"
        return self.server.raw().request(method, path)

    def path(self, case: str) -> str:
        """Where a case is."""
        return f"{self.stack and '/'}{self.stack}/{self.mode}/{case}"

    def seen(self, name: str = "") -> dict[str, Any]:
        """The app's own counts, and what it told under a name; no unit and no session is in play."""
        seen: dict[str, Any] = json.loads(self.client.get("/seen", params={"name": name}).content)
        return seen

    def told(self, name: str) -> list[str]:
        """What the app told under a name, once every request is through, background tasks included."""
        self.wait_until_through()
        told: list[str] = self.seen(name)["told"]
        return told

    def wait_until_through(self) -> None:
        """Return when no request is under way any more."""
        wait_until(lambda: self.seen()["in_flight"] == 0, "all requests are through")

    def kept(self, name: str) -> list[str]:
        """The items whose names begin with this one, through a second connection."""
        rows = self.backend.query("SELECT name FROM items WHERE name LIKE ? ORDER BY name", (f"{name}%",))
        return [row[0] for row in rows]

    def release(self, name: str) -> None:
        """Let the task go on that has outlived the request of this name."""
        self.client.post("/release", params={"name": name}).raise_for_status()

    def cancel(self, name: str, way: str) -> None:
        """Cancel the request of this name from outside of all: its "task", or a "scope" of anyio."""
        self.client.post("/cancel", params={"name": name, "way": way}).raise_for_status()

    def wait_until_told(self, name: str, what: str) -> None:
        """Return when the app has told something that begins so."""

        def has_told() -> bool:
            return any(each.startswith(what) for each in self.seen(name)["told"])

        wait_until(has_told, f"{name}: {what!r} is told")

    def add_items(self, *names: str) -> None:
        """Write items through the second connection."""
        for each in names:
            self.backend.execute("INSERT INTO items (name) VALUES (?)", (each,))

    def is_at_rest(self) -> None:
        """Assert that nothing is left behind: no connection is checked out, no transaction is open."""
        self.wait_until_through()
        assert self.seen().get("checked_out", 0) == 0
        self.backend.wait_until_at_rest()

    def new_log(self, since: int) -> str:
        """What the server has written to its log since it was that long."""
        return self.server.log()[since:]


def problem(answer: httpx.Response) -> tuple[int, str]:
    """The status and the name of a problem document; anything else fails."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = answer.json()
    assert document["status"] == answer.status_code
    return answer.status_code, document["type"].removeprefix("/problems/")
