"""The app that is stormed: every endpoint under each isolation level, with replay and without it.

`/serializable/replay/increment/1` and `/serializable/once/increment/1` are the same handler; which of them
is run again, and at what level, is said by rules. `TESTS_MODE` chooses the session, and with
`TESTS_ASK_SECONDS` the database is asked, for so long, what became of a COMMIT whose answer was lost.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from uow import Database, UnitOfWork, UnitOfWorkMiddleware, current_session, current_sync_session
from uow.observe import Settlement, UnitObserver
from uow.outcome import TrueOutcome
from uow.retry import Retry

LEVELS = ("read-committed", "repeatable-read", "serializable")
WAYS = ("replay", "once")

SCHEMA = (
    "CREATE TABLE items (id SERIAL PRIMARY KEY, name VARCHAR(50) UNIQUE NOT NULL);"
    "CREATE TABLE counters (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);"
    "INSERT INTO counters SELECT id, 0 FROM generate_series(1, 100) AS id"
)


class Attempts(UnitObserver):
    """An observer that counts how the attempts of requests ended."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        self.ended[f"{'first' if unit.attempt == 1 else 'later'} {unit.outcome}"] += 1


def value(session: Session, row: int, *, locked: bool = False) -> int:
    lock = " FOR UPDATE" if locked else ""
    return int(
        session.execute(text(f"SELECT n FROM counters WHERE id = :id{lock}"), {"id": row}).scalar_one()
    )


def store(session: Session, row: int, n: int) -> None:
    session.execute(text("UPDATE counters SET n = :n WHERE id = :id"), {"n": n, "id": row})


def increment(session: Session, request: Request) -> int:
    """Read, change in Python, write: what loses updates where two may read the same value."""
    row = int(request.path_params["row"])
    n = value(session, row) + 1
    store(session, row, n)
    return n


def add_to_both(session: Session, request: Request) -> int:
    """Lock two rows one after the other: those who begin with different ones block each other."""
    rows = [int(request.path_params["row"]), int(request.path_params["row"]) + 1]
    if request.query_params["order"] == "down":
        rows.reverse()
    for row in rows:
        store(session, row, value(session, row, locked=True) + 1)
    return len(rows)


def add(session: Session, request: Request) -> int:
    name = request.path_params["name"]
    session.execute(text("INSERT INTO items (name) VALUES (:name)"), {"name": name})
    return 1


def count(session: Session, _: Request) -> int:
    return int(session.execute(text("SELECT count(*) FROM items")).scalar_one())


Work = Callable[[Session, Request], int]


def endpoint(work: Work, mode: str) -> Any:
    """A handler that does this work in a session of this kind."""

    async def handle_async(request: Request) -> Response:
        return JSONResponse({"n": await current_session().run_sync(work, request)})

    def handle_sync(request: Request) -> Response:
        return JSONResponse({"n": work(current_sync_session(), request)})

    return handle_async if mode == "async" else handle_sync


def routes(mode: str) -> list[Route]:
    made = [Route("/count", endpoint(count, mode))]
    for level in LEVELS:
        for way in WAYS:
            start = f"/{level}/{way}"
            made += [
                Route(f"{start}/increment/{{row}}", endpoint(increment, mode), methods=["POST"]),
                Route(f"{start}/both/{{row}}", endpoint(add_to_both, mode), methods=["POST"]),
                Route(f"{start}/items/{{name}}", endpoint(add, mode), methods=["POST"]),
            ]
    return made


def create_app() -> Starlette:
    """The app as a server process makes it, from its environment."""
    attempts = Attempts()
    seconds = float(os.environ.get("TESTS_ASK_SECONDS", "0"))
    outcome = TrueOutcome(seconds=seconds) if seconds else None
    database = Database(os.environ["TESTS_STORM_URL"], observer=attempts, outcome=outcome)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with database:
            yield

    def ended(_: Request) -> Response:
        return JSONResponse(attempts.ended)

    app = Starlette(
        routes=[*routes(os.environ["TESTS_MODE"]), Route("/ended", ended)],
        lifespan=lifespan,
    )
    rules: list[dict[str, Any]] = [
        {"match": f"POST /{level}/*", "isolation": level.replace("-", " ")} for level in LEVELS
    ]
    rules += [{"match": f"POST /{level}/once/*", "retry": False} for level in LEVELS]
    app.add_middleware(UnitOfWorkMiddleware, database=database, retry=Retry(), rules=rules)
    return app
