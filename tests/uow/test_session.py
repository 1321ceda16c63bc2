"""What dooms a unit, and what its session is worth afterwards (L9, L18)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from tests.support.backends import Backend, Mode
from tests.uow.conftest import Connect
from tests.uow.units import (
    Item,
    count,
    insert,
    names,
    request,
    within,
)
from uow import Database, errors


def swallowing(session: Session) -> None:
    session.execute(text("INSERT INTO items (name) VALUES ('before')"))
    try:
        insert("nut")(session)
    except IntegrityError:
        return
    raise AssertionError("the database was meant to refuse")


async def test_a_swallowed_error_dooms_on_every_engine(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L9, and what the handler sends afterwards is refused with the reason."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def going_on(session: Session) -> None:
        swallowing(session)
        count(session)

    for work in (swallowing, going_on):
        recorder = await request(database, mode, work)
        assert (recorder.status, recorder.json()["type"]) == (500, "/problems/unit-doomed")
        assert "the database refused a statement (IntegrityError)" in recorder.json()["detail"]
    assert (await request(database, mode, swallowing, status=409)).status == 409
    assert names(backend) == ["nut"]


def contained(session: Session) -> None:
    insert("before")(session)
    savepoint = session.begin_nested()
    session.add(Item(name="inside"))
    session.flush()
    with session.begin_nested():
        insert("deeper")(session)
    with pytest.raises(IntegrityError):
        insert("nut")(session)
    savepoint.rollback()
    insert("after")(session)


async def test_an_error_contained_in_a_savepoint_dooms_nothing(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L9."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    assert (await request(database, mode, contained)).status == 201
    assert names(backend)[0:1] + sorted(names(backend)[1:]) == ["nut", "after", "before"]


async def test_an_error_swallowed_inside_a_savepoint_is_raised_where_it_is_released(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L9: alike on every engine, and what the savepoint held is undone."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def work(session: Session) -> None:
        insert("outside")(session)
        with pytest.raises(IntegrityError), session.begin_nested():
            swallowing(session)

    assert (await request(database, mode, work)).status == 201
    assert names(backend) == ["nut", "outside"]


async def test_an_error_from_before_a_savepoint_survives_its_rollback(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L9: containing is for what is inside."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def work(session: Session) -> None:
        savepoint = session.begin_nested()
        insert("inside")(session)
        savepoint.rollback()
        swallowing(session)

    assert (await request(database, mode, work)).json()["type"] == "/problems/unit-doomed"


async def test_a_savepoint_that_cannot_begin_dooms_too(mode: Mode, tmp_path: Any, connect: Connect) -> None:
    database = connect(f"sqlite:///{tmp_path}/no/such/folder.db")

    def work(session: Session) -> None:
        with pytest.raises(DBAPIError):
            session.begin_nested().session.connection()

    recorder = await request(database, mode, work)

    assert (recorder.status, recorder.json()["type"]) == (503, "/problems/database-unavailable")


async def test_a_savepoint_whose_flush_is_refused_dooms_the_unit(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L9: `begin_nested()` flushes what was added before it, outside of the savepoint."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def work(session: Session) -> None:
        session.add(Item(name="nut"))
        with pytest.raises(IntegrityError):
            session.begin_nested()

    assert (await request(database, mode, work)).json()["type"] == "/problems/unit-doomed"


CALLS: dict[str, Callable[[Session], Any]] = {
    "execute": count,
    "scalars": lambda session: session.scalars(select(Item)),
    "scalar": lambda session: session.scalar(text("SELECT 1")),
    "get": lambda session: session.get(Item, 1),
    "add": lambda session: session.add(Item(name="late")),
    "flush": lambda session: session.flush(),
    "connection": lambda session: session.connection(),
    "begin_nested": lambda session: session.begin_nested(),
    "expire_all": lambda session: session.expire_all(),
    "commit": lambda session: session.commit(),
    "rollback": lambda session: session.rollback(),
    "begin": lambda session: session.begin(),
}


async def test_a_session_that_outlives_its_unit_is_sealed(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L18: each call names the unit; `close()` stays allowed, and what was loaded stays readable."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def capture(session: Session) -> tuple[Session, Item]:
        return session, session.get_one(Item, 1)

    session, item = await within(database, mode, capture, name="job")

    for call in CALLS.values():
        with pytest.raises(errors.UnitOfWorkClosed, match="job: the unit of work is settled"):
            call(session)
    session.close()
    assert item.name == "nut"
    backend.wait_until_at_rest()


@pytest.mark.parametrize("number", [1, 70])
async def test_results_end_with_their_unit(
    backend: Backend, mode: Mode, database: Database, number: int
) -> None:
    """L18: also where there are many of them."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def capture(session: Session) -> list[Any]:
        done = [session.execute(text("SELECT name FROM items")) for _ in range(number)]
        for result in done[1:]:
            result.all()
        return [done[0], session.scalars(select(Item))]

    for result in await within(database, mode, capture, name="job"):
        for fetch in (result.first, result.all, result.fetchmany):
            with pytest.raises(errors.UnitOfWorkClosed, match="job: "):
                fetch()
    backend.wait_until_at_rest()
