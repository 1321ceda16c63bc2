"""Two things at the same moment: each test makes the moment, instead of waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session
from starlette.types import Message, Receive, Scope, Send

from tests.support.asgi import run_asgi
from tests.support.backends import Backend, Mode
from tests.uow.units import insert, names, request
from uow import Database, UnitOfWork, UnitOfWorkMiddleware, current_unit
from uow._context import current_place
from uow._shield import finish
from uow._transaction import UnitTransaction
from uow.errors import UnitOfWorkClosed

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b""}


class Meanwhile:
    """A lock that lets something happen just before it is taken."""

    def __init__(self, lock: Any, happen: Callable[[], object]) -> None:
        self._lock = lock
        self._happen = happen

    def __enter__(self) -> None:
        self._happen()
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


async def test_L18_a_unit_that_a_thread_makes_while_the_answer_begins_is_settled(database: Database) -> None:
    units: list[UnitOfWork] = []

    class Start(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            if key == "type" and not units:
                units.append(current_unit())
            return super().__getitem__(key)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(Start(START))
        await send(BODY)

    recorder = await run_asgi(UnitOfWorkMiddleware(app, database=database), "POST", "/")

    assert recorder.status == 200
    assert [unit.outcome for unit in units] == ["committed"]


async def test_L18_no_unit_is_made_for_a_thread_that_asks_when_the_answer_has_begun(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun: list[Any] = []
        lock = Meanwhile(database.opening, lambda: begun.append(send(START)))
        monkeypatch.setattr(database, "opening", lock)
        with pytest.raises(UnitOfWorkClosed) as error:
            current_unit()
        refused.append(error.value)
        monkeypatch.undo()
        await begun[0]
        await send(BODY)

    recorder = await run_asgi(UnitOfWorkMiddleware(app, database=database), "POST", "/")

    assert recorder.status == 200
    assert len(refused) == 1


async def test_L23_two_threads_that_ask_at_once_get_one_unit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    units: list[UnitOfWork] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        def the_other() -> None:
            monkeypatch.undo()
            units.append(current_place().current())

        monkeypatch.setattr(database, "opening", Meanwhile(database.opening, the_other))
        units.append(current_unit())
        await send(START)
        await send(BODY)

    await run_asgi(UnitOfWorkMiddleware(app, database=database), "POST", "/")

    assert len(units) == 2
    assert units[0] is units[1]


async def test_a_call_that_leaves_while_the_unit_begins_to_settle_is_not_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.new_unit() as unit:
        assert unit.session is not None
        assert unit._work is not None
        work: UnitTransaction = unit._work

        class LeftMeanwhile(Future[None]):
            def __init__(self) -> None:
                super().__init__()
                work.give()

        monkeypatch.setattr("uow._turns.Future", LeftMeanwhile)
        work.enter()
        left = work.stop_entering()

    assert left is not None
    assert left.done()
    assert unit.outcome == "committed"


async def test_work_that_ends_at_its_deadline_has_ended() -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    await finish(done, seconds=0)


async def test_a_connection_whose_session_cannot_be_closed_is_thrown_away(
    backend: Backend, mode: Mode, database: Database
) -> None:
    def work(session: Session) -> None:
        insert("kept")(session)
        event.listen(session, "after_transaction_end", fail)

    def fail(*_: object) -> None:
        raise RuntimeError("a listener of the app's")

    for _ in range(2):
        await request(database, mode, work, status=409)
    assert (await request(database, mode, insert("next"))).status == 201
    assert names(backend) == ["next"]
    backend.wait_until_at_rest()


async def test_L13_a_cancellation_after_the_acknowledged_commit_takes_nothing_back(
    backend: Backend, database: Database
) -> None:
    def cancel(*_: object) -> None:
        raise asyncio.CancelledError

    units: list[UnitOfWork] = []

    async def work() -> None:
        async with database.new_unit() as unit:
            units.append(unit)
            await unit.session.execute(text("INSERT INTO items (name) VALUES ('kept')"))
            event.listen(unit.session.sync_session, "after_commit", cancel)

    with pytest.raises(asyncio.CancelledError):
        await work()

    assert [unit.outcome for unit in units] == ["committed"]
    assert names(backend) == ["kept"]
    backend.wait_until_at_rest()
