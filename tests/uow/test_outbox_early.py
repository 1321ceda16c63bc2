"""What is published before anybody has asked for a session: it goes with whichever is asked for later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from tests.support.asgi import run_asgi
from tests.support.backends import Backend, Mode
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, tell, words
from tests.uow.units import Told, add, in_thread, insert, make_tables, names
from uow import (
    Database,
    UnitOfWork,
    UnitOfWorkMiddleware,
    current_sync_session,
    current_unit,
    errors,
)

pytestmark = [pytest.mark.anyio, pytest.mark.backends("sqlite", "pg18")]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def database(backend: Backend, connect: Connect, told: Told) -> Database:
    make_tables(backend)
    make_outbox_table(backend)
    database = connect(backend, observer=told)
    outbox_of(database, Received())
    return database


def plain() -> None:
    tell("early")


async def awaited() -> None:
    tell("early")


async def endpoint() -> None:
    await add("row")
    tell("late")


def endpoint_in_a_thread() -> None:
    insert("row")(current_sync_session())
    tell("late")


@pytest.mark.parametrize("dependency", [plain, awaited])
@pytest.mark.parametrize("handler", [endpoint, endpoint_in_a_thread])
async def test_a_dependency_that_publishes_does_not_choose_the_session_of_the_endpoint(
    database: Database, backend: Backend, dependency: Callable[[], None], handler: Callable[[], object]
) -> None:
    """Plain functions run in a thread, where a sync session suits, and the endpoint may want an async one."""
    app = FastAPI()
    app.add_api_route("/work", handler, methods=["POST"], dependencies=[Depends(dependency)])
    app.add_middleware(UnitOfWorkMiddleware, database=database)

    answer = await run_asgi(app, "POST", "/work")

    assert (answer.status, answer.error) == (200, None)
    assert (words(backend), names(backend)) == (["early", "late"], ["row"])
    backend.wait_until_at_rest()


@pytest.mark.parametrize("dependency", [plain, awaited])
@pytest.mark.parametrize(("status", "kept"), [(201, ["early"]), (409, [])])
async def test_the_answer_decides_where_nobody_asks_for_a_session(
    database: Database,
    backend: Backend,
    told: Told,
    dependency: Callable[[], None],
    status: int,
    kept: list[str],
) -> None:
    """L1, L2, L20: what is not kept opens nothing."""
    app = FastAPI()

    @app.post("/work", status_code=status, dependencies=[Depends(dependency)])
    async def work() -> None:
        assert told.waits == []

    app.add_middleware(UnitOfWorkMiddleware, database=database)

    assert (await run_asgi(app, "POST", "/work")).status == status
    assert words(backend) == kept
    assert len(told.waits) == len(kept)


class Oops(Exception):
    pass


def fails() -> None:
    raise Oops


def is_rolled_back() -> None:
    current_unit().set_rollback_only()


@pytest.mark.parametrize("end", [fails, is_rolled_back])
async def test_a_unit_that_is_not_committed_opens_nothing(
    database: Database, backend: Backend, mode: Mode, told: Told, end: Callable[[], None]
) -> None:
    def in_a_thread() -> None:
        with database.new_unit():
            tell("early")
            end()

    with suppress(Oops):
        if mode == "sync":
            await in_thread(in_a_thread)
        else:
            async with database.new_unit():
                tell("early")
                end()
    assert (told.waits, words(backend)) == ([], [])


async def within_later(database: Database, mode: Mode, work: Callable[[Session], None]) -> UnitOfWork:
    """Publish, and then do the work in the same unit."""

    def in_a_thread() -> UnitOfWork:
        with database.new_unit() as unit:
            tell("early")
            work(unit.sync_session)
        return unit

    if mode == "sync":
        return await in_thread(in_a_thread)
    async with database.new_unit() as unit:
        tell("early")
        await unit.session.run_sync(work)
    return unit


async def test_a_session_that_is_asked_for_and_not_used_takes_it_along(
    database: Database, backend: Backend, mode: Mode
) -> None:
    unit = await within_later(database, mode, lambda session: None)
    assert (unit.outcome, words(backend)) == ("committed", ["early"])


async def test_a_savepoint_takes_back_what_was_published_in_it_and_nothing_from_before(
    database: Database, backend: Backend, mode: Mode
) -> None:
    def work(session: Session) -> None:
        with session.begin_nested() as savepoint:
            insert("undone")(session)
            tell("undone")
            savepoint.rollback()
        with session.begin_nested():
            insert("kept")(session)
            tell("kept")

    await within_later(database, mode, work)
    assert (words(backend), names(backend)) == (["early", "kept"], ["kept"])


@pytest.mark.parametrize("mode", ["sync"])
async def test_so_does_one_of_the_connection(database: Database, backend: Backend, mode: Mode) -> None:
    def work(session: Session) -> None:
        with session.connection().begin_nested() as savepoint:
            tell("undone")
            savepoint.rollback()
        tell("late")

    await within_later(database, mode, work)
    assert words(backend) == ["early", "late"]


async def test_a_handler_that_rolls_back_undoes_it(database: Database, backend: Backend, mode: Mode) -> None:
    """L11."""
    with pytest.raises(errors.UnitOfWorkDoomed):
        await within_later(database, mode, lambda session: session.rollback())
    assert words(backend) == []


async def test_after_the_end_of_a_unit_that_had_no_session_it_is_too_late(
    database: Database, backend: Backend
) -> None:
    async with database.new_unit():
        tell("in time")
        inside = copy_context()
    with pytest.raises(errors.UnitOfWorkClosed):
        inside.run(tell, "late")
    with pytest.raises(errors.UnitOfWorkClosed):
        await anyio.to_thread.run_sync(inside.run, lambda: tell("late"))
    assert words(backend) == ["in time"]


async def test_a_unit_that_no_engine_writes_for_is_told_where_it_publishes(backend: Backend) -> None:
    engine = create_engine(backend.url("sync"))
    database = Database.from_engines(sync_reader=engine)
    outbox_of(database, Received())
    async with database.new_unit() as unit:
        with pytest.raises(ValueError, match="writer"):
            tell("nowhere")
    assert unit.outcome == "committed"  # there is nothing in it
    await database.dispose()
    engine.dispose()


async def test_two_sessions_of_one_unit_are_refused_as_ever(database: Database, backend: Backend) -> None:
    """L24."""
    async with database.new_unit():
        tell("early")
        await add("row")
        with pytest.raises(errors.MixedSessions):
            current_sync_session()
    assert (words(backend), names(backend)) == (["early"], ["row"])


@pytest.mark.parametrize("session_first", [True, False])
async def test_where_nobody_is_owed_anything_nothing_is_kept(
    backend: Backend, connect: Connect, told: Told, session_first: bool
) -> None:
    """There is no table to write to."""
    database = connect(backend, observer=told)
    outbox_of(database)
    async with database.new_unit() as unit:
        if session_first:
            assert unit.session is not None
        tell("nobody")
    assert (unit.outcome, told.waits) == ("committed", [])
