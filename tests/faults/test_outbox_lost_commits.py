"""L8 and the outbox: an event leaves if and only if its COMMIT was kept, though the answer to that is lost.

`make faults` cuts more links.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import make_url
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.faults.proxy import At, PostgresProxy
from tests.support.asgi import Recorder, run_asgi
from tests.support.backends import MODES, Mode, PostgresBackend
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell
from tests.uow.units import insert, make_tables, names, wait_for_threads
from uow import Database, UnitOfWorkMiddleware, current_session, current_sync_session, current_unit
from uow.outcome import TrueOutcome
from uow.retry import Retry

LONG = "FAULTS" in os.environ
CUTS = 10 * int(os.environ["FAULTS"]) if LONG else 3
MODES_HERE: tuple[Mode, ...] = MODES if LONG else ("async",)
AT_ONCE = 3

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.backends("pg18", "pgsystem"),  # asyncpg and psycopg
    pytest.mark.modes(*MODES_HERE),
]


@pytest.fixture
def proxy(postgres: PostgresBackend) -> Iterator[PostgresProxy]:
    make_tables(postgres)
    make_outbox_table(postgres)
    with PostgresProxy(make_url(postgres.database_url).port or 5432) as proxy:
        yield proxy


def write(session: Any, name: str) -> str:
    """A row and an event, each with the word of this very attempt."""
    word = f"{name}/{current_unit().attempt}"
    insert(word)(session)
    tell(word)
    return word


def endpoint(mode: Mode) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        word = await current_session().run_sync(write, request.path_params["name"])
        return JSONResponse(word, 201)

    def handle_sync(request: Request) -> Response:
        return JSONResponse(write(current_sync_session(), request.path_params["name"]), 201)

    return handle if mode == "async" else handle_sync


def app_of(database: Database, mode: Mode, attempts: int) -> Starlette:
    app = Starlette(routes=[Route("/{name}", endpoint(mode), methods=["POST"])])
    retry = Retry(attempts=attempts, first_pause=0.0) if attempts > 1 else None
    app.add_middleware(UnitOfWorkMiddleware, database=database, retry=retry)
    return app


@asynccontextmanager
async def relaying(postgres: PostgresBackend, received: Received) -> AsyncIterator[None]:
    """A relay with a link of its own, which nobody cuts."""
    async with Database(postgres.database_url) as database, relay_of(outbox_of(database, received)):
        yield
        await wait_until_async(lambda: postgres.count("outbox_events") == 0, "all is sent")


async def cut_one(app: Starlette, proxy: PostgresProxy, at: At, name: str) -> list[Recorder]:
    """Some requests at once, of which one loses the link of its COMMIT."""
    hit = proxy.hit
    proxy.cut(at, once=True)
    paths = [f"/{name}-{number}" for number in range(AT_ONCE)]
    answers = await asyncio.gather(*(run_asgi(app, "POST", path) for path in paths))
    assert proxy.hit == hit + 1
    return answers


@pytest.mark.parametrize("at", ["before_commit", "commit_sent", "commit_done"])
@pytest.mark.parametrize("attempts", [1, 5], ids=["once", "replay"])
async def test_L8_an_event_arrives_if_and_only_if_the_client_was_told_of_success(
    postgres: PostgresBackend, proxy: PostgresProxy, mode: Mode, at: At, attempts: int
) -> None:
    """Once, and never that of an attempt that was aborted."""
    received, answers = Received(), list[Recorder]()
    async with relaying(postgres, received):
        url = proxy.url_of(postgres.database_url)
        async with Database(url, outcome=TrueOutcome(seconds=LIMIT)) as database:
            outbox_of(database, received)
            app = app_of(database, mode, attempts)
            await asyncio.gather(*(run_asgi(app, "POST", f"/first-{each}") for each in range(AT_ONCE)))
            for number in range(CUTS):
                answers += await cut_one(app, proxy, at, f"cut-{number}")
    await wait_for_threads()

    told = Counter(answer.status for answer in answers)
    refused = CUTS if (at, attempts) == ("before_commit", 1) else 0
    # psycopg has a COMMIT of its own when it connects: a cut of that one costs nobody who asks an answer.
    assert refused / 2 <= told[503] <= refused
    assert told[201] == len(answers) - told[503]
    kept = {answer.json() for answer in answers if answer.status == 201}
    assert {name for name in names(postgres) if name.startswith("cut")} == kept
    words = [word for word in received.words if word.startswith("cut")]
    assert sorted(words) == sorted(kept)
    assert len({event.id for event in received.events}) == len(received.events)
    later = sum(not word.endswith("/1") for word in words)
    print(f"{postgres.name} {mode} {at}: {CUTS} cut, {dict(told)}, {later} kept by a later attempt")  # noqa: T201 - figures for the documentation
