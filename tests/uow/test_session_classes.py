"""Session classes of the team's own, and handlers that settle for themselves until they are moved over."""

from __future__ import annotations

import logging
from itertools import count
from typing import Any, ClassVar

import pytest
import sqlmodel
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession

from tests.support.backends import Backend, Mode, SqliteBackend
from tests.uow.conftest import Connect
from tests.uow.units import Work, insert, make_tables, names, request, within
from uow import Database, UnitSession, current_session, current_sync_session, current_unit
from uow.errors import MixedSessions, SettleRefused, UnitOfWorkClosed

pytestmark = pytest.mark.backends("sqlite", "pg18")


class SQLModelSession(UnitSession, sqlmodel.Session):
    """SQLModel's own, as a unit's."""


class Item(sqlmodel.SQLModel, table=True):
    __tablename__: ClassVar[Any] = "items"  # SQLModel declares it as SQLAlchemy's own descriptor
    id: int | None = sqlmodel.Field(default=None, primary_key=True)
    name: str


@pytest.fixture
def sqlmodel_database(backend: Backend, connect: Connect) -> Database:
    make_tables(backend)
    return connect(backend, session_class=SQLModelSession, async_session_class=SQLModelAsyncSession)


async def test_sqlmodels_async_session_is_a_units(backend: Backend, sqlmodel_database: Database) -> None:
    async with sqlmodel_database.new_unit() as unit:
        session: Any = unit.session
        assert isinstance(session, SQLModelAsyncSession)
        session.add(Item(name="nut"))
        assert (await session.exec(sqlmodel.select(Item.name))).all() == ["nut"]
        with pytest.raises(SettleRefused):
            await session.commit()
    with pytest.raises(UnitOfWorkClosed):
        await session.exec(sqlmodel.select(Item))

    assert names(backend) == ["nut"]


async def test_sqlmodels_session_is_a_units(backend: Backend, sqlmodel_database: Database) -> None:
    def work(session: Any) -> list[str]:
        assert isinstance(session, SQLModelSession)
        session.add(Item(name="nut"))
        found: list[str] = list(session.exec(sqlmodel.select(Item.name)).all())
        return found

    assert (await request(sqlmodel_database, "sync", work)).json() == ["nut"]
    assert (await request(sqlmodel_database, "sync", insert("undone"), status=409)).status == 409
    assert names(backend) == ["nut"]


async def test_get_bind_may_look_and_hand_on(backend: Backend, mode: Mode, connect: Connect) -> None:
    asked: list[object] = []

    class Watching(UnitSession):
        def get_bind(self, mapper: Any = None, **options: Any) -> Any:
            asked.append(mapper)
            return super().get_bind(mapper, **options)

    make_tables(backend)
    database = connect(backend, session_class=Watching)
    await request(database, mode, insert("nut"))

    assert asked
    assert names(backend) == ["nut"]


async def test_L24_get_bind_to_another_database_is_refused_before_it_is_half_committed(
    backend: Backend, mode: Mode, connect: Connect, tmp_path: Any
) -> None:
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    async_other = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")

    class Routing(UnitSession):
        def get_bind(self, mapper: Any = None, **options: Any) -> Any:
            if options.get("clause") is not None and "elsewhere" in str(options["clause"]):
                return other if mode == "sync" else async_other.sync_engine
            return super().get_bind(mapper, **options)

    def work(session: Session) -> None:
        insert("nut")(session)
        with pytest.raises(MixedSessions, match="get_bind"):
            session.execute(text("SELECT 1 AS elsewhere"))

    make_tables(backend)
    database = connect(backend, session_class=Routing)
    await within(database, mode, work)
    assert names(backend) == ["nut"]
    backend.wait_until_at_rest()
    other.dispose()
    await async_other.dispose()


async def test_a_second_database_in_one_app_has_units_of_its_own(
    backend: Backend, database: Database, connect: Connect, tmp_path: Any
) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    second_backend = SqliteBackend(folder)
    make_tables(second_backend)
    second = connect(second_backend)

    def work(session: Session) -> None:
        insert("in the first")(session)
        with second.new_unit() as unit:
            assert unit is current_unit()
            insert("in the second")(current_sync_session())
        assert current_unit() is not unit

    assert (await request(database, "sync", work, status=409)).status == 409
    assert names(backend) == []
    assert names(second_backend) == ["in the second"]


def test_a_session_class_that_is_no_units_is_refused() -> None:
    plain: Any = Session
    with pytest.raises(TypeError, match=r"class Session\(UnitSession, \.\.\.\)"):
        Database("sqlite://", session_class=plain)


def test_another_word_for_what_handlers_may_do_is_refused() -> None:
    unknown: Any = "commit"
    with pytest.raises(ValueError, match="handlers_settle='commit' is neither"):
        Database("sqlite://", handlers_settle=unknown)


@pytest.fixture
def moving(backend: Backend, connect: Connect) -> Database:
    make_tables(backend)
    return connect(backend, handlers_settle="flush")


def commits(name: str) -> Work[None]:
    def work(session: Session) -> None:
        insert(name)(session)
        session.commit()

    return work


@pytest.mark.parametrize(("status", "kept"), [(201, ["nut", "bolt"]), (409, [])])
async def test_L11_a_commit_flushes_where_handlers_are_still_moving_over(
    backend: Backend, mode: Mode, moving: Database, status: int, kept: list[str]
) -> None:
    for name in ("nut", "bolt"):
        assert (await request(moving, mode, commits(name), status=status)).status == status
    assert names(backend) == kept


async def test_L11_each_place_is_logged_once(
    backend: Backend, moving: Database, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = count()

    async def one(session: AsyncSession) -> None:
        await session.commit()

    async def another(session: AsyncSession) -> None:
        async with session.begin():
            await session.run_sync(insert(f"item-{next(numbers)}"))

    with caplog.at_level(logging.WARNING, "uow"):
        for _ in range(3):
            async with moving.new_unit():
                await one(current_session())
            async with moving.new_unit():
                await another(current_session())

    lines = [one.__code__.co_firstlineno + 1, another.__code__.co_firstlineno + 1]
    assert [
        f"{__file__}:{line}" in record.getMessage()
        for line, record in zip(lines, caplog.records, strict=True)
    ] == [
        True,
        True,
    ]


async def test_L11_a_begin_block_undoes_itself_only(backend: Backend, mode: Mode, moving: Database) -> None:
    def fail(session: Session) -> None:
        with session.begin():
            insert("undone")(session)
            raise LookupError

    def work(session: Session) -> None:
        with session.begin():
            insert("kept")(session)
        with pytest.raises(LookupError):
            fail(session)

    await request(moving, mode, work)
    assert names(backend) == ["kept"]


async def test_L11_the_rest_is_refused_as_ever(backend: Backend, mode: Mode, moving: Database) -> None:
    def work(session: Session) -> None:
        session.get_transaction()
        insert("nut")(session)
        transaction = session.get_transaction()
        assert transaction is not None
        with pytest.raises(SettleRefused):
            session.prepare()
        with pytest.raises(SettleRefused):
            session.reset()

    await request(moving, mode, work)
    assert names(backend) == ["nut"]


def test_L11_a_call_from_nowhere_has_a_place_too(moving_nowhere: Database, caplog: Any) -> None:
    """Code that was compiled without a file: the place is what Python knows of it."""
    with moving_nowhere.new_unit() as unit:
        exec(compile("session.commit()", "<nowhere>", "exec"), {"session": unit.sync_session})
    assert "<nowhere>:1" in caplog.text


@pytest.fixture
def moving_nowhere(tmp_path: Any) -> Any:
    with Database(f"sqlite:///{tmp_path / 'x.db'}", handlers_settle="flush") as database:
        yield database
