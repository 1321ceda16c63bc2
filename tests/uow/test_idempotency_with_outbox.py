"""A key and events in one unit; these go with either of `uow.idempotency` and `uow.outbox`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware import Middleware
from starlette.responses import Response

from tests.support.backends import Backend
from tests.support.processes import python_environment
from tests.support.server import ROOT
from tests.uow.keys import Counted, counting, keyed, make_keys, one, send
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, tell, words
from uow import Database


@one
async def test_what_no_route_takes_publishes_nothing_with_a_key(backend: Backend, database: Database) -> None:
    """Nobody has asked for a session, and yet there would be an event, which a repeat would publish again."""
    make_keys(backend)
    make_outbox_table(backend)
    outbox_of(database, Received())

    class Answering:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            tell("published")
            await Response()(scope, receive, send)

    app = keyed(counting("async", Counted()), database)
    inside: Any = Answering
    app.user_middleware.append(Middleware(inside))

    answer = await send(app, path="/elsewhere")

    assert "no route of the app takes it" in str(answer.error)
    assert (answer.status, words(backend)) == (500, [])
    assert (await send(app, None, path="/elsewhere")).status == 200
    assert words(backend) == ["published"]


WRITES = """
import asyncio, importlib, sys
from pathlib import Path
importlib.import_module(sys.argv[1])
from sqlalchemy import Engine, event
from tests.support.backends import SqliteBackend
from tests.uow.keys import Counted, counting, keyed, make_keys, send
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, tell
from tests.uow.units import make_tables
from uow import Database

async def main() -> None:
    backend = SqliteBackend(Path(sys.argv[2]))
    for make in (make_tables, make_keys, make_outbox_table):
        make(backend)
    said = []
    async with Database(backend.database_url) as database:
        outbox_of(database, Received())
        event.listen(Engine, "before_cursor_execute", lambda _, cursor, sql, *__: said.append(sql))
        await send(keyed(counting("async", Counted(work=lambda _: tell("a"))), database))
    print([sql.split()[:3] for sql in said][-2:])

asyncio.run(main())
"""


@pytest.mark.parametrize("first", ["uow.idempotency", "uow.outbox"])
def test_events_are_written_after_the_answer_whatever_is_imported_first(tmp_path: Path, first: str) -> None:
    """They are written under locks that others wait for."""
    command = [sys.executable, "-c", WRITES, first, str(tmp_path)]
    said = subprocess.check_output(command, cwd=ROOT, env=python_environment({"PYTHONPATH": str(ROOT)}))
    assert said.decode().strip() == (
        "[['UPDATE', 'idempotency_keys', 'SET'], ['INSERT', 'INTO', 'outbox_events']]"
    )
