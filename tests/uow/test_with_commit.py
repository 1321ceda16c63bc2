"""What goes out with COMMIT, in one trip: it is kept with the unit, or the unit is not kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from tests.support.asgi import run_asgi
from tests.support.backends import Backend
from tests.uow.conftest import Connect
from tests.uow.units import app_of, insert, make_tables, names, within
from uow import Database, current_session
from uow._watch import work_of
from uow.engines.postgresql import literal

pytestmark = pytest.mark.backends("pg18")

NASTY = [
    "plain",
    "it's",
    "a\\b",
    "\\",
    "\\'",
    "'';--",
    "E'\\x41'",
    "$1 :name %s %(x)s ?",
    "äß€😀",
    "\t\r\n\x01",
]
NOTHING = "INSERT INTO items (name, version) VALUES (NULL, 1)"


@pytest.fixture(autouse=True)
def _tables(backend: Backend) -> None:
    make_tables(backend)


def pid(session: Session) -> int:
    return session.scalar(text("SELECT pg_backend_pid()")) or 0


def along(*statements: str, work: Callable[[Session], Any] = pid) -> Callable[[Session], Any]:
    """Does its work, and has these go out with COMMIT."""

    def do(session: Session) -> Any:
        done = work(session)
        connection = session.connection()
        unit = work_of(connection)
        assert unit is not None
        assert unit.adapter.sends_with_commit(connection)
        unit.with_commit += "".join(f"{statement}; " for statement in statements)
        return done

    return do


def adding(name: str) -> str:
    return f"INSERT INTO items (name, version) VALUES ({literal(name)}, 1)"


async def test_it_is_kept_with_the_unit(backend: Backend, connect: Connect) -> None:
    database = connect(backend, pool_size=1, max_overflow=0)
    first = await within(database, "async", along(adding("a"), adding("b")))
    assert await within(database, "async", pid) == first
    assert names(backend) == ["a", "b"]


async def test_a_unit_that_is_not_kept_sends_nothing_then_or_later(
    backend: Backend, connect: Connect
) -> None:
    database = connect(backend, pool_size=1, max_overflow=0)

    def fail(session: Session) -> None:
        along(adding("lost"))(session)
        raise LookupError

    with pytest.raises(LookupError):
        await within(database, "async", fail)
    await within(database, "async", insert("kept"))
    assert names(backend) == ["kept"]


async def test_nothing_is_left_for_who_has_the_connection_next(backend: Backend) -> None:
    """Who uses an engine of their own without a unit has not asked for anything to go along."""

    def give_up(session: Session) -> None:
        along(adding("lost"))(session)
        connection = session.connection()
        unit = work_of(connection)
        assert unit is not None
        unit.adapter.send_with_commit(connection, unit.with_commit)  # as just before COMMIT
        raise LookupError

    engine = create_async_engine(backend.url("async"), pool_size=1, max_overflow=0)
    async with Database.from_engines(writer=engine) as database:
        with pytest.raises(LookupError):
            await within(database, "async", give_up)
        async with engine.begin() as connection:
            await connection.execute(text(adding("theirs")))
    await engine.dispose()
    assert names(backend) == ["theirs"]


@pytest.mark.parametrize("deadline", [None, 30.0])
async def test_what_fails_undoes_the_unit_and_leaves_its_connection_clean(
    backend: Backend, connect: Connect, deadline: float | None
) -> None:
    database = connect(backend, pool_size=1, max_overflow=0)
    before = await within(database, "async", pid)

    async def handle(_: Request) -> Response:
        await current_session().run_sync(along(NOTHING, work=insert("lost")))
        return Response(status_code=201)

    refused = {IntegrityError: lambda request, error: PlainTextResponse("refused", 409)}
    app = app_of(handle, database, deadline=deadline, handlers=refused)
    answer = await run_asgi(app, "POST", "/work")
    assert (answer.status, answer.body) == (409, b"refused")
    assert names(backend) == []
    assert await within(database, "async", pid) == before


async def test_so_it_is_where_the_transaction_had_failed_already(backend: Backend, connect: Connect) -> None:
    """An error on the driver's own connection raises no event; with a deadline something goes along."""
    database = connect(backend, pool_size=1, max_overflow=0)
    before = await within(database, "async", pid)

    async def handle(_: Request) -> Response:
        session = current_session()
        await session.run_sync(insert("lost"))
        raw: Any = await (await session.connection()).get_raw_connection()
        with suppress(Exception):
            await raw.driver_connection.execute("SELECT nothing")
        return Response(status_code=201)

    answer = await run_asgi(app_of(handle, database, deadline=30.0), "POST", "/work")
    assert (answer.status, answer.json()["type"]) == (500, "/problems/unit-doomed")
    assert names(backend) == []
    assert await within(database, "async", pid) == before


@pytest.mark.parametrize("conforming", ["on", "off"])
async def test_a_literal_is_the_value_whatever_is_in_it(
    backend: Backend, connect: Connect, conforming: str
) -> None:
    database = connect(backend)

    def ask(session: Session) -> list[Any]:
        session.execute(text(f"SET LOCAL standard_conforming_strings = {conforming}"))
        session.execute(text("SET LOCAL escape_string_warning = off"))
        values: list[str | bytes | int] = [*NASTY, bytes(range(256)), b"", -5, 2**62]
        types = {str: "text", bytes: "bytea", int: "bigint"}
        asked = ", ".join(f"CAST({literal(value)} AS {types[type(value)]})" for value in values)
        found = session.connection().exec_driver_sql(f"SELECT {asked}").one()
        assert list(found) == values
        return values

    await within(database, "async", ask)
