"""An event exists if and only if the unit that has published it committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tests.support.backends import Backend, Mode
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, Told, make_outbox_table, tell, words
from tests.uow.units import count, in_thread, insert, make_tables, names, request, within
from uow import Database, current_unit, errors, on_commit
from uow.outbox import Outbox, publish

# Nearly all of it is the same for each driver; the first test shows that.
pytestmark = [pytest.mark.anyio, pytest.mark.backends("sqlite", "pg18")]


@pytest.fixture
async def database(backend: Backend, connect: Connect) -> Database:
    make_tables(backend)
    make_outbox_table(backend)
    database = connect(backend)
    Outbox(database, [Received()], source="/tests")
    return database


@pytest.mark.backends("sqlite", "pg18", "pgsystem")
async def test_an_event_of_a_committed_unit_is_there(
    database: Database, backend: Backend, mode: Mode
) -> None:
    def work(session: Session) -> None:
        insert("a")(session)
        tell("one")
        tell("two")

    await within(database, mode, work)
    assert words(backend) == ["one", "two"]
    rows = backend.query("SELECT destination, state, type, subject, attempts FROM outbox_events")
    assert rows == [("received", "pending", "thing.told", "things/1", 0)] * 2


async def test_a_unit_that_does_nothing_else_publishes(
    database: Database, backend: Backend, mode: Mode
) -> None:
    def work(session: Session) -> None:
        tell("alone")
        session.expunge_all()  # nor does it matter what becomes of its objects

    await within(database, mode, work)
    assert words(backend) == ["alone"]
    backend.wait_until_at_rest()


async def test_it_needs_no_session_to_be_asked_for(database: Database, backend: Backend) -> None:
    async with database.new_unit():
        tell("async")

    def in_a_thread() -> None:
        with database.new_unit():
            tell("sync")

    await in_thread(in_a_thread)
    with database.new_unit():  # a sync block on the thread of the event loop
        tell("both")
    assert words(backend) == ["async", "sync", "both"]


class Oops(Exception):
    pass


def fails(session: Session) -> None:
    raise Oops


def is_rolled_back_in_the_end(session: Session) -> None:
    current_unit().set_rollback_only()


def swallows(session: Session) -> None:
    insert("twice")(session)
    with pytest.raises(IntegrityError):
        insert("twice")(session)


def rolls_back(session: Session) -> None:
    session.rollback()


@pytest.mark.parametrize("end", [fails, is_rolled_back_in_the_end, swallows, rolls_back])
async def test_an_event_of_a_unit_that_is_not_committed_is_not_there(
    database: Database, backend: Backend, mode: Mode, end: Callable[[Session], None]
) -> None:
    def work(session: Session) -> None:
        tell("before")
        insert("a")(session)
        end(session)

    with suppress(Oops, errors.UnitOfWorkDoomed):
        await within(database, mode, work)
    assert words(backend) == names(backend) == []


@pytest.mark.parametrize(("status", "kept"), [(201, ["a"]), (303, ["a"]), (404, []), (409, []), (500, [])])
async def test_L1_L2_the_answer_decides(
    database: Database, backend: Backend, mode: Mode, status: int, kept: list[str]
) -> None:
    def work(session: Session) -> None:
        insert("a")(session)
        tell("a")

    recorder = await request(database, mode, work, status=status)
    assert recorder.status == status
    assert words(backend) == names(backend) == kept


@pytest.mark.backends("pg18")
async def test_L5_a_commit_that_is_refused_publishes_nothing(
    database: Database, backend: Backend, mode: Mode
) -> None:
    def work(session: Session) -> None:
        session.execute(text("INSERT INTO notes (later) VALUES (99)"))
        tell("refused")

    assert (await request(database, mode, work)).status == 409
    assert words(backend) == []


async def test_no_table_is_an_error_of_the_unit_and_never_a_lost_event(
    database: Database, backend: Backend, mode: Mode
) -> None:
    backend.execute("DROP TABLE outbox_events")

    def work(session: Session) -> None:
        insert("a")(session)
        tell("a")

    assert (await request(database, mode, work)).status == 500
    assert names(backend) == []
    backend.wait_until_at_rest()


async def test_what_is_changed_later_does_not_count(database: Database, backend: Backend) -> None:
    async with database.new_unit():
        told = Told(1, "as it was")
        publish(told)
        told.word = "changed"
    assert words(backend) == ["as it was"]


async def test_what_a_listener_publishes_at_the_last_moment_is_there(
    database: Database, backend: Backend, mode: Mode
) -> None:
    def work(session: Session) -> None:
        insert("a")(session)
        tell("first")
        sqlalchemy_event.listen(session, "before_commit", lambda _: tell("last"))

    await within(database, mode, work)
    assert sorted(words(backend)) == ["first", "last"]


async def test_each_destination_is_owed_each_event(backend: Backend, connect: Connect) -> None:
    make_outbox_table(backend)
    database = connect(backend)
    Outbox(database, [Received("one"), Received("two")], source="/tests")
    async with database.new_unit():
        tell("a")
        tell("b")
    assert words(backend, "destination = 'one'") == words(backend, "destination = 'two'") == ["a", "b"]
    ids = backend.query("SELECT id, count(*) FROM outbox_events GROUP BY id ORDER BY 2")
    assert [row[1] for row in ids] == [2, 2]


async def test_without_destinations_nothing_is_written_nor_opened(backend: Backend, connect: Connect) -> None:
    database = connect(backend)  # there is no table
    Outbox(database, [], source="/tests")
    async with database.new_unit() as unit:
        assert publish(Told(1))
    assert unit.outcome == "committed"


async def test_after_commit_was_sent_it_is_too_late(database: Database, backend: Backend, mode: Mode) -> None:
    raised = []

    def late(_: Session) -> None:
        with pytest.raises(errors.UnitOfWorkClosed, match="COMMIT was sent") as error:
            tell("late")
        raised.append(error)

    def work(session: Session) -> None:
        tell("in time")
        sqlalchemy_event.listen(session, "after_commit", late)

    await within(database, mode, work)
    assert len(raised) == 1
    assert words(backend) == ["in time"]


# refused


async def test_a_read_only_unit_publishes_nothing(database: Database, backend: Backend, mode: Mode) -> None:
    def work(session: Session) -> None:
        count(session)
        tell("never")

    with pytest.raises(errors.ReadOnlyUnitOfWork, match="nothing to publish"):
        await within(database, mode, work, read_only=True)
    assert (await request(database, mode, work, method="GET")).status == 500


async def within_one_that_is_over(database: Database) -> list[type[Exception]]:
    raised: list[type[Exception]] = []
    with suppress(errors.UnitOfWorkDoomed):
        async with database.new_unit() as unit:
            await unit.session.rollback()
            try:
                tell("never")
            except errors.UnitOfWorkError as error:
                raised.append(type(error))
    return raised


async def test_outside_of_a_unit_there_is_the_error_of_the_core(database: Database) -> None:
    with pytest.raises(errors.NoUnitOfWork):
        tell("never")
    over = await within_one_that_is_over(database)
    assert over == [errors.UnitOfWorkClosed]


async def test_in_a_callback_there_is_no_unit_to_publish_in(database: Database, backend: Backend) -> None:
    raised = []

    def later() -> None:
        try:
            tell("too late")
        except errors.UnitOfWorkError as error:
            raised.append(type(error))

    async with database.new_unit():
        on_commit(later)
    assert raised == [errors.NoUnitOfWork] or raised == [errors.UnitOfWorkClosed]
    assert words(backend) == []


async def test_a_database_without_an_outbox_says_so(backend: Backend, connect: Connect) -> None:
    async with connect(backend).new_unit():
        with pytest.raises(LookupError, match=r"Outbox\(database"):
            tell("where to?")


async def test_what_is_no_event_is_a_type_error(database: Database, backend: Backend) -> None:
    @dataclass
    class Undeclared:
        thing: int

    class Below(Told):
        pass

    async with database.new_unit():
        for wrong in (Undeclared(1), Below(1), object(), "text"):
            with pytest.raises(TypeError, match="no declared event"):
                publish(wrong)
    assert words(backend) == []


async def test_what_is_too_large_is_refused_where_it_is_published(
    database: Database, backend: Backend
) -> None:
    most = 64 * 1024 - len('{"thing":1,"word":""}')
    async with database.new_unit():
        publish(Told(1, "x" * most))
        with pytest.raises(ValueError, match="65537 bytes"):
            publish(Told(1, "x" * (most + 1)))
        with pytest.raises(ValueError, match="bytes"):
            publish(Told(1, "\N{EURO SIGN}" * (most // 2)))
    assert len(words(backend)) == 1


async def test_after_a_savepoint_that_another_task_has_open_it_is_concurrent_use(
    database: Database, backend: Backend
) -> None:
    """As `add()`: whose savepoint it would belong to is not known."""
    async with database.new_unit() as unit:
        opened, done = asyncio.Event(), asyncio.Event()

        async def other() -> None:
            async with unit.session.begin_nested():
                opened.set()
                await done.wait()

        task = asyncio.create_task(other())
        await opened.wait()
        with pytest.raises(errors.ConcurrentUse):
            tell("whose?")
        done.set()
        await task
        tell("mine")
    assert words(backend) == ["mine"]


# savepoints


class Program:
    """Rows and events that are made side by side, in savepoints that end in any way."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.made = 0

    def make(self, session: Session) -> None:
        """One row and one event of the same name, in any order."""
        self.made += 1
        word = f"w{self.made}"
        if self.random.random() < 0.5:
            tell(word)
            insert(word)(session)
        else:
            insert(word)(session)
            tell(word)

    def block(self, session: Session, depth: int) -> None:
        for _ in range(self.random.randint(0, 3)):
            if depth and self.random.random() < 0.6:
                try:
                    with session.begin_nested():
                        self.block(session, depth - 1)
                        self.end(session)
                except (Oops, IntegrityError):
                    pass
            else:
                self.make(session)

    def end(self, session: Session) -> None:
        match self.random.choice(("release", "raise", "roll back", "fail", "swallow")):
            case "raise":
                raise Oops
            case "roll back":
                nested = session.get_nested_transaction()
                assert nested is not None
                nested.rollback()
            case "fail":
                session.execute(text("INSERT INTO items (name, stock) VALUES ('bad', -1)"))
            case "swallow":
                with pytest.raises(IntegrityError):
                    session.execute(text("INSERT INTO items (name, stock) VALUES ('bad', -1)"))
            case _:
                pass


async def test_whatever_savepoints_end_how_events_are_kept_with_the_rows(
    database: Database, backend: Backend, mode: Mode
) -> None:
    kept = 0
    for seed in range(25):
        program = Program(seed)
        await within(database, mode, lambda session, program=program: program.block(session, 3))  # type: ignore[misc]  # a default binds the loop's variable
        rows, told = names(backend), words(backend)
        assert sorted(rows) == sorted(told), f"seed {seed}"
        kept += len(rows)
        backend.execute("DELETE FROM items; DELETE FROM outbox_events")
    assert kept > 10


@pytest.mark.parametrize("first", [True, False])
async def test_a_savepoint_of_the_connection_counts_as_well(
    database: Database, backend: Backend, first: bool
) -> None:
    def work() -> None:
        with database.new_unit() as unit:
            if first:
                tell("before")
            with unit.sync_session.connection().begin_nested() as savepoint:
                tell("undone")
                savepoint.rollback()
            with unit.sync_session.connection().begin_nested():
                tell("kept")
            tell("after")

    await in_thread(work)
    assert words(backend) == [*(["before"] if first else []), "kept", "after"]
