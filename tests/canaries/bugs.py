"""Seeded bugs: each breaks one promise of `uow`, so that a test can be seen to notice.

A bug replaces named parts of the library, in this process only. `apply(name, put)` switches one on: with
`MonkeyPatch.setattr` for the length of a test, with `put_for_good` for the life of a process. A part that
is no longer there raises AttributeError: the bug would change nothing, and no test could notice it.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import Future
from collections.abc import Callable, Coroutine
from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from starlette.types import Message, Receive, Scope, Send

from uow import Database, UnitOfWork, UnitOfWorkMiddleware, _transaction, _turns, _unit, current_unit
from uow._callbacks import run_callbacks, run_callbacks_sync
from uow._options import UnitOptions
from uow._sessions import UnitSession
from uow._transaction import UnitTransaction
from uow._turns import Turns
from uow._watch import Watch
from uow.engines import sqlite
from uow.engines.sqlite import SQLite

VARIABLE = "TESTS_BUG"
"""The environment variable that names the bug of a process."""

Put = Callable[[object, str, object], None]
"""How a part is replaced: its owner, its name, and what stands there instead."""

Bug = Callable[[Put], None]
BUGS: dict[str, Bug] = {}


def bug(function: Bug) -> Bug:
    BUGS[function.__name__] = function
    return function


def apply(name: str, put: Put) -> None:
    """Switch a bug on; KeyError for one that there is none of."""

    def put_if_there(owner: object, part: str, instead: object) -> None:
        the(owner, part)
        put(owner, part, instead)

    BUGS[name](put_if_there)


def put_for_good(owner: object, name: str, instead: object) -> None:
    """Replace a part for the life of this process."""
    setattr(owner, name, instead)


def apply_from_environment() -> str | None:
    """Switch the bug of this process on, if it has one; return its name."""
    name = os.environ.get(VARIABLE) or None
    if name is not None:
        apply(name, put_for_good)
    return name


def the(owner: object, name: str) -> Any:
    """A part of the library that a bug leans on; AttributeError if it is gone."""
    try:
        return getattr(owner, name)
    except AttributeError:
        where = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", repr(owner))
        raise AttributeError(f"a seeded bug finds no {name!r} in {where}: write the bug anew") from None


MakeSend = Callable[[Send, Send], Send]
"""From the client's `send` and the one that the middleware judges by: the one that the app gets."""


def _between_app_and_middleware(put: Put, make_send: MakeSend) -> None:
    """Let the app send past the middleware; the client gets the first start of an answer only."""
    call = the(UnitOfWorkMiddleware, "__call__")

    async def served(middleware: UnitOfWorkMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await call(middleware, scope, receive, send)
            return
        begun = False

        async def to_client(message: Message) -> None:
            nonlocal begun
            if message["type"] != "http.response.start" or not begun:
                begun = begun or message["type"] == "http.response.start"
                await send(message)

        async def with_bug(scope: Scope, receive: Receive, judged: Send) -> None:
            await middleware.app(scope, receive, make_send(to_client, judged))

        inner = copy(middleware)
        inner.app = with_bug
        await call(inner, scope, receive, to_client)

    put(UnitOfWorkMiddleware, "__call__", served)


@bug
def bytes_before_commit(put: Put) -> None:
    """The answer begins first, and then the unit is settled."""

    def early(to_client: Send, judged: Send) -> Send:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                await to_client(message)
            await judged(message)

        return send

    _between_app_and_middleware(put, early)


@bug
def streams_are_settled_late(put: Put) -> None:
    """A streamed answer begins before COMMIT, which comes with its last byte."""

    def late(to_client: Send, judged: Send) -> Send:
        heads: list[Message] = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                heads.append(message)
                return
            if heads and message.get("more_body"):
                await to_client(heads[0])
                await to_client(message)
                return
            if heads:
                await judged(heads.pop())
            await judged(message)

        return send

    _between_app_and_middleware(put, late)


@bug
def streams_that_read_end_early(put: Put) -> None:
    """The unit of a streamed answer that only reads is closed behind its first chunk."""

    def closing(to_client: Send, judged: Send) -> Send:
        async def send(message: Message) -> None:
            await judged(message)
            if message.get("more_body"):
                await current_unit().settle(commit=True)

        return send

    _between_app_and_middleware(put, closing)


@bug
def errors_are_kept(put: Put) -> None:
    """A 4xx or 5xx answer commits."""
    put(UnitOptions, "commits", lambda options, status: True)


@bug
def commit_error_swallowed(put: Put) -> None:
    """What refuses the commit is passed over, and the unit counts as committed."""
    commit = the(UnitTransaction, "_commit")

    def careless(work: UnitTransaction, session: UnitSession) -> None:
        with suppress(Exception):
            commit(work, session)

    put(UnitTransaction, "_commit", careless)


@bug
def no_shield(put: Put) -> None:
    """Who cancels the request cancels its COMMIT."""

    async def unshielded(work: Coroutine[Any, Any, None] | Future[None], *, seconds: float) -> None:
        await asyncio.ensure_future(work)

    put(_unit, "finish", unshielded)


@bug
def half_a_shield(put: Put) -> None:
    """COMMIT goes on when the request is cancelled, but nobody waits for its end."""

    async def forsaken(work: Coroutine[Any, Any, None] | Future[None], *, seconds: float) -> None:
        await asyncio.shield(asyncio.ensure_future(work))

    put(_unit, "finish", forsaken)


@bug
def stock_sqlite_driver(put: Put) -> None:
    """SQLite as its driver comes: nothing is begun before the first write, and anybody may write."""
    engine_arguments, set_up = the(SQLite, "engine_arguments"), the(sqlite, "_set_up")

    def stock(adapter: SQLite, url: URL, options: dict[str, Any], **kind: bool) -> tuple[URL, dict[str, Any]]:
        chosen: dict[str, Any]
        url, chosen = engine_arguments(adapter, url, options, **kind)
        chosen.pop("poolclass", None)
        chosen["connect_args"].pop("isolation_level")
        return url, chosen

    def prepare_writer(adapter: SQLite, engine: Engine) -> None:
        event.listen(engine, "connect", set_up)

    put(SQLite, "engine_arguments", stock)
    put(SQLite, "prepare_writer", prepare_writer)
    # Else the missing transaction is taken for one that was ended by text.
    put(Database, "begins_visibly", property(lambda database: not database.adapter.one_writer))


@bug
def no_doom(put: Put) -> None:
    """A statement that the database has refused is forgotten when the handler swallows the error."""
    put(Watch, "doom", lambda work, error, *, for_good=False: None)


@bug
def no_seal(put: Put) -> None:
    """A session and its results can be used after their unit."""
    began = the(Watch, "began")

    def taken_up_again(work: Watch, connection: Connection) -> None:
        work.abandoned = False
        began(work, connection)

    put(Watch, "began", taken_up_again)
    put(Watch, "check_open", lambda work: None)
    put(UnitOfWork, "_check_open", lambda unit: None)
    put(_transaction, "seal", lambda result, name: None)


@bug
def savepoints_contain_nothing(put: Put) -> None:
    """An error dooms the unit though it was inside a savepoint that was rolled back."""
    undone = the(Watch, "savepoint_undone")
    the(Watch, "_failure_depth")

    def remembered(work: Watch) -> None:
        failure, depth = work.failure, work._failure_depth
        undone(work)
        work.failure, work._failure_depth = failure, depth

    put(Watch, "savepoint_undone", remembered)


@bug
def savepoints_forgive(put: Put) -> None:
    """An error that was swallowed inside a savepoint is forgotten where the savepoint is released."""
    undone = the(Watch, "savepoint_undone")

    def released(work: Watch, connection: Connection, name: str) -> None:
        undone(work)

    put(Watch, "savepoint_released", released)


@bug
def callbacks_after_a_rollback(put: Put) -> None:
    """What `on_commit` took runs whatever became of the unit."""
    the(UnitOfWork, "run_callbacks")

    async def run_all(unit: UnitOfWork) -> None:
        await run_callbacks(unit.name, unit._callbacks, unit.database.limiter)

    def run_all_sync(unit: UnitOfWork) -> None:
        run_callbacks_sync(unit.name, unit._callbacks)

    put(UnitOfWork, "run_callbacks", run_all)
    put(UnitOfWork, "run_callbacks_sync", run_all_sync)


@bug
def readers_may_write(put: Put) -> None:
    """A read-only unit gets a connection of the writer."""
    engine = the(Database, "engine")

    def writer(database: Database, options: UnitOptions, *, asynchronous: bool) -> Any:
        return engine(database, replace(options, read_only=False), asynchronous=asynchronous)

    put(Database, "engine", writer)


@bug
def no_turns(put: Put) -> None:
    """Calls go into a session while others are inside, and into the savepoints of others."""
    the(Turns, "_entries")
    tell = the(_turns, "_tell")

    def take(turns: Turns, savepoint: object = None) -> None:
        turns._entries += 1

    def give(turns: Turns) -> None:
        turns._entries -= 1
        if not turns._entries and turns._idle is not None:
            tell(turns._idle)

    put(Turns, "take", take)
    put(Turns, "give", give)


@bug
def savepoints_for_all(put: Put) -> None:
    """Calls take turns, but a savepoint belongs to nobody: what others do meanwhile is undone with it."""
    put(Turns, "_may_enter", lambda turns, savepoint: True)
    put(Turns, "open_savepoint", lambda turns: None)


@bug
def web_sockets_promise_early(put: Put) -> None:
    """A WebSocket may send while what it has written is not committed."""
    put(UnitOfWork, "check_may_tell", lambda unit: None)
