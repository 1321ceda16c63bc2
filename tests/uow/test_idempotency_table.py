"""The behaviour that draft-ietf-httpapi-idempotency-key-header describes, as one table.

A row is: what was sent before, what is sent now, and how that is answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.routing import Route

from tests.support.asgi import AsgiCall, Recorder
from tests.support.backends import Backend, Mode
from tests.uow.keys import REPLAYED, Counted, counting, keyed, make_keys
from tests.uow.units import names
from uow import Database

LONGEST = "k" * 255


@dataclass(frozen=True)
class Sent:
    """A request: the lines of its header, and what else makes it what it is."""

    keys: tuple[str, ...] = ("k-1",)
    method: str = "POST"
    target: str = "/work"
    body: bytes = b'{"n": 1}'
    headers: dict[str, str] = field(default_factory=dict)

    async def to(self, app: Any) -> Recorder:
        call = AsgiCall(app, self.method, self.target, body=self.body, headers=self.headers)
        call.scope["headers"] += [(b"idempotency-key", key.encode("latin-1")) for key in self.keys]
        return await call.run()


FIRST = Sent()
BARE_AND_QUOTED = Sent(('"k-1"',))

DONE, AGAIN = "done", "again"
Answer = str | tuple[int, str]
INVALID = (400, "/problems/idempotency-key-invalid")
REUSED = (422, "/problems/idempotency-key-reused")
REQUIRED = (400, "/problems/idempotency-key-required")

TABLE: dict[str, tuple[list[Sent], Sent, Answer]] = {
    "a key that is new": ([], FIRST, DONE),
    "the same request again": ([FIRST], FIRST, AGAIN),
    "and again": ([FIRST, FIRST, FIRST], FIRST, AGAIN),
    "another key": ([FIRST], Sent(("k-2",)), DONE),
    "a key that differs in case": ([FIRST], Sent(("K-1",)), DONE),
    "a string of RFC 8941": ([], BARE_AND_QUOTED, DONE),
    "with quotes it is the same key": ([FIRST], BARE_AND_QUOTED, AGAIN),
    "and without them": ([BARE_AND_QUOTED], FIRST, AGAIN),
    "what is escaped in a string": ([Sent((r'"a\"b\\c"',))], Sent((r'"a\"b\\c"',)), AGAIN),
    "spaces around it": ([FIRST], Sent(("  k-1\t",)), AGAIN),
    "the longest key": ([Sent((LONGEST,))], Sent((LONGEST,)), AGAIN),
    "the longest key in quotes": ([Sent((LONGEST,))], Sent((f'"{LONGEST}"',)), AGAIN),
    "one that is longer": ([], Sent((LONGEST + "k",)), INVALID),
    "one that is longer in quotes": ([], Sent((f'"{LONGEST}k"',)), INVALID),
    "an empty one": ([], Sent(("",)), INVALID),
    "an empty string": ([], Sent(('""',)), INVALID),
    "a string that does not end": ([], Sent(('"k-1',)), INVALID),
    "a string with something after it": ([], Sent(('"k-1";a=1',)), INVALID),
    "a wrong escape": ([], Sent((r'"\k"',)), INVALID),
    "a space inside": ([], Sent(("k 1",)), INVALID),
    "a space inside of a string": ([], Sent(('"k 1"',)), INVALID),
    "what is not ASCII": ([], Sent(("k-\xe9",)), INVALID),
    "what cannot be seen": ([], Sent(("k\x7f",)), INVALID),
    "sent twice": ([], Sent(("k-1", "k-1")), INVALID),
    "sent twice, not the same": ([], Sent(("k-1", "k-2")), INVALID),
    "sent twice, as one line": ([], Sent(("k-1, k-2",)), INVALID),
    "missing where it is required": ([], Sent((), method="PUT"), REQUIRED),
    "there where it is required": ([], Sent(method="PUT"), DONE),
    "missing where it is not": ([FIRST], Sent(()), DONE),
    "another body": ([FIRST], Sent(body=b'{"n": 2}'), REUSED),
    "the same body in other words": ([FIRST], Sent(body=b'{"n":1}'), REUSED),
    "no body": ([FIRST], Sent(body=b""), REUSED),
    "another method": ([FIRST], Sent(method="PUT"), REUSED),
    "another path": ([FIRST], Sent(target="/other"), REUSED),
    "another query": ([FIRST], Sent(target="/work?dry=1"), REUSED),
    "another kind of content": ([FIRST], Sent(headers={"Content-Type": "text/plain"}), REUSED),
    "another coding of the content": ([FIRST], Sent(headers={"Content-Encoding": "gzip"}), REUSED),
    "other headers": ([FIRST], Sent(headers={"User-Agent": "b", "Accept": "text/html"}), AGAIN),
    "the first again after another": ([FIRST, Sent(body=b"2")], FIRST, AGAIN),
}


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.backends("sqlite", "pg18")
@pytest.mark.modes("async")
async def test_the_draft(backend: Backend, mode: Mode, database: Database, case: str) -> None:
    make_keys(backend)
    before, now, expected = TABLE[case]
    work = Counted()
    app = keyed(counting(mode, work), database, required=["PUT /work"])
    app.router.routes.append(Route("/other", counting(mode, work), methods=["POST"]))
    answers = [await each.to(app) for each in before]
    runs, rows = work.runs, len(names(backend))

    answer = await now.to(app)

    if expected == DONE:
        assert (answer.status, answer.json(), work.runs) == (201, {"run": runs + 1}, runs + 1)
        assert len(names(backend)) == rows + 1
        assert REPLAYED not in answer.headers
        return
    assert (work.runs, len(names(backend))) == (runs, rows)
    if expected == AGAIN:
        assert (answer.status, answer.body) == (201, answers[0].body)
        assert answer.headers[REPLAYED] == "true"
    else:
        assert (answer.status, answer.json()["type"]) == expected
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["instance"] == now.target.partition("?")[0]
    backend.wait_until_at_rest()
