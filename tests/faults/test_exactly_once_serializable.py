"""Keys, events and replay together, at SERIALIZABLE on rows that everybody wants: I1 and I3.

`make faults` goes on for longer.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.asgi import Recorder, run_asgi
from tests.support.backends import PostgresBackend
from tests.support.wait import wait_until_async
from tests.uow.keys import REPLAYED, make_keys
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell
from uow import Database, UnitOfWork, UnitOfWorkMiddleware, current_session
from uow.idempotency import IdempotencyMiddleware
from uow.observe import Settlement, UnitObserver
from uow.outcome import TrueOutcome
from uow.retry import Retry

CLIENTS = 16
TURNS = 4 * int(os.environ.get("FAULTS", "1"))
ROWS = 3
SEED = 16

pytestmark = [pytest.mark.anyio, pytest.mark.backends("pg18", "pgsystem")]


class Attempts(UnitObserver):
    """An observer that counts how units ended, and in which attempt."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        self.ended[f"{'first' if unit.attempt == 1 else 'later'} {unit.outcome}"] += 1


async def increment(request: Request) -> Response:
    """Read, change in Python, write, and say so: two that read the same version must not both commit."""
    row, session = int(request.path_params["row"]), current_session()
    version = (
        1
        + (await session.execute(text("SELECT version FROM hot WHERE id = :row"), {"row": row})).scalar_one()
    )
    tell(str(version), row)
    await session.execute(
        text("UPDATE hot SET version = :version WHERE id = :row"), {"version": version, "row": row}
    )
    return JSONResponse({"row": row, "version": version}, 201)


def app_of(database: Database) -> Starlette:
    app = Starlette(routes=[Route("/{row}", increment, methods=["POST"])])
    app.add_middleware(IdempotencyMiddleware, principal=None)
    app.add_middleware(
        UnitOfWorkMiddleware,
        database=database,
        retry=Retry(attempts=5, first_pause=0.001),
        rules=[{"match": "POST /{row}", "isolation": "serializable"}],
    )
    return app


@dataclass
class Clients:
    """Each sends every request to both apps at once, with one key, until both have answered."""

    apps: list[Starlette]
    answers: dict[str, list[Recorder]] = field(default_factory=dict[str, list[Recorder]])
    refused: int = 0

    async def run(self, number: int) -> None:
        random = Random(f"{SEED}-{number}")
        for turn in range(TURNS):
            key, path = f"{number}-{turn}", f"/{random.randrange(ROWS)}"
            self.answers[key] = await asyncio.gather(*(self.ask(app, path, key) for app in self.apps))

    async def ask(self, app: Starlette, path: str, key: str) -> Recorder:
        while True:
            answer = await run_asgi(app, "POST", path, headers={"Idempotency-Key": key})
            if answer.status != 503:
                return answer
            self.refused += 1


async def test_a_key_has_one_effect_and_an_effect_one_event_in_the_order_of_commits(
    postgres: PostgresBackend,
) -> None:
    """Two databases, as two processes have them: their requests meet in PostgreSQL alone."""
    print(f"seed {SEED}")  # noqa: T201 - who repeats a failure needs it
    make_keys(postgres)
    make_outbox_table(postgres)
    postgres.execute("CREATE TABLE hot (id INTEGER PRIMARY KEY, version INTEGER NOT NULL)")
    postgres.execute(f"INSERT INTO hot SELECT id, 0 FROM generate_series(0, {ROWS - 1}) AS id")
    attempts, received = Attempts(), Received()
    databases = [Database(postgres.database_url, observer=attempts, outcome=TrueOutcome()) for _ in range(2)]
    relays = [relay_of(outbox_of(each, received)) for each in databases]
    clients = Clients([app_of(each) for each in databases])
    async with databases[0], databases[1], relays[0], relays[1]:
        await asyncio.gather(*(clients.run(number) for number in range(CLIENTS)))
        await wait_until_async(lambda: postgres.count("outbox_events") == 0, "all is sent")

    effects = assert_same(clients)
    versions: dict[int, int] = dict(postgres.query("SELECT id, version FROM hot"))
    assert sum(versions.values()) == len(clients.answers) == CLIENTS * TURNS
    every = {(row, version) for row in versions for version in range(1, versions[row] + 1)}
    assert effects == every
    assert len({event.id for event in received.events}) == len(received.events) == len(every)
    for row, version in versions.items():
        told = [event for event in received.events if event.subject == f"things/{row}"]
        assert [int(json.loads(each.data)["word"]) for each in told] == list(range(1, version + 1))
    assert attempts.ended["later committed"] > 0, "somebody was in somebody's way"
    print(f"{postgres.name}: {len(every)} keys, {dict(attempts.ended)}, refused {clients.refused}")  # noqa: T201 - figures for the documentation


def assert_same(clients: Clients) -> set[tuple[int, int]]:
    """Both answers of a key are the same, and one of them is no repeat; returns what they say.

    There was time for all to wait for the first, so nobody reads 409.
    """
    effects: set[tuple[int, int]] = set()
    for key, answers in clients.answers.items():
        assert {answer.status for answer in answers} == {201}, key
        assert len({answer.body for answer in answers}) == 1, key
        assert sum(REPLAYED not in answer.headers for answer in answers) == 1, key
        said = answers[0].json()
        effects.add((said["row"], said["version"]))
    return effects
