"""SQLite: what a repeat is told whose first request is in another process.

Another process is mostly a second database object here: its locks are those of another open file, as those of
a process are. `tests/faults/test_key_in_flight.py` has real ones, which are killed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from starlette.middleware import Middleware
from starlette.routing import Mount

from tests.support.asgi import watch
from tests.support.backends import Backend, Mode
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.keys import (
    IN_USE,
    REPLAYED,
    Counted,
    Held,
    counting,
    held_elsewhere,
    keyed,
    make_keys,
    open_lock_files,
    problem,
    send,
)
from tests.uow.units import make_tables, names
from uow import current_session
from uow.idempotency import IdempotencyMiddleware, _locks
from uow.idempotency._locks import KeyLock

pytestmark = pytest.mark.backends("sqlite")

BUSY = (503, "/problems/serialization-failure")


@pytest.fixture(autouse=True)
def _keys(backend: Backend) -> None:
    make_tables(backend)
    make_keys(backend)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the lock was to be had, at each look at it."""
    found: list[bool] = []
    try_ = _locks._try

    def counted(path: str, offset: int) -> KeyLock | None:
        lock = try_(path, offset)
        found.append(lock is not None)
        return lock

    monkeypatch.setattr(_locks, "_try", counted)
    return found


@pytest.mark.parametrize("wait", [0.0, 0.1])
async def test_a_repeat_is_told_that_the_first_request_is_under_way(
    mode: Mode, backend: Backend, connect: Connect, wait: float
) -> None:
    held, work = Held(), Counted()
    first = await held_elsewhere(held, connect(backend))
    elsewhere = keyed(counting(mode, work), connect(backend), wait=wait)

    with watch([]) as timeline:
        repeat = await send(elsewhere)

    assert problem(repeat) == IN_USE
    assert int(repeat.headers["retry-after"]) > 0
    assert timeline == []  # it has not even asked for the writer
    held.go.release()
    assert (await first).status == 201
    again = await send(elsewhere)
    assert (again.status, again.json(), again.headers[REPLAYED]) == (201, {"run": 1}, "true")
    assert (work.runs, names(backend)) == (0, ["run-1"])


async def test_where_the_writer_works_on_another_key_nobody_is_told_so(
    mode: Mode, backend: Backend, connect: Connect
) -> None:
    held, work = Held(), Counted()
    work.runs = 1
    first = await held_elsewhere(held, connect(backend), "another")
    elsewhere = keyed(counting(mode, work), connect(backend, pool_timeout=0.1), wait=LIMIT)

    early = await send(elsewhere)

    assert problem(early) == BUSY
    assert int(early.headers["retry-after"]) > 0
    assert work.runs == 1
    held.go.release()
    assert (await first).status == 201
    late = await send(elsewhere)
    assert (late.status, REPLAYED in late.headers, names(backend)) == (201, False, ["run-1", "run-2"])


async def test_a_repeat_waits_for_the_answer(
    mode: Mode, backend: Backend, connect: Connect, looks: list[bool]
) -> None:
    held, work = Held(), Counted()
    first = await held_elsewhere(held, connect(backend, pool_timeout=0.1))
    elsewhere = keyed(counting(mode, work), connect(backend, pool_timeout=0.1), wait=LIMIT)
    repeats = [asyncio.ensure_future(send(elsewhere)) for _ in range(5)]
    await wait_until_async(lambda: looks.count(False) > 1, "one of them waits for the lock")
    held.go.release()

    answers = [await each for each in (first, *repeats)]

    assert {(answer.status, answer.body) for answer in answers} == {(201, b'{"run":1}')}
    assert (work.runs, names(backend)) == (0, ["run-1"])


async def test_a_repeat_takes_over_when_the_first_fails(
    mode: Mode, backend: Backend, connect: Connect, looks: list[bool]
) -> None:
    held, work = Held(500), Counted()
    first = await held_elsewhere(held, connect(backend))
    second = asyncio.ensure_future(send(keyed(counting(mode, work), connect(backend))))
    await wait_until_async(lambda: False in looks, "it waits for the lock")
    held.go.release()

    assert (await first).status == 500
    assert (await second).json() == {"run": 1}
    assert (work.runs, names(backend)) == (1, ["run-1"])


async def test_whoever_leaves_leaves_no_lock(
    mode: Mode, backend: Backend, connect: Connect, looks: list[bool]
) -> None:
    """L12: neither the first request nor a repeat that waits for it."""
    held, work = Held(), Counted()
    here, elsewhere = connect(backend), keyed(counting(mode, work), connect(backend))
    first = await held_elsewhere(held, here)
    repeat = asyncio.ensure_future(send(elsewhere))
    await wait_until_async(lambda: False in looks, "it waits for the lock")
    for request in (repeat, first):
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    assert (await send(elsewhere)).json() == {"run": 1}
    assert names(backend) == ["run-1"]
    assert open_lock_files(backend) == 0


async def test_where_there_are_no_such_locks_the_writer_is_waited_for(
    mode: Mode, backend: Backend, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uow.idempotency._locks.sys.platform", "darwin")
    held, work = Held(), Counted()
    first = await held_elsewhere(held, connect(backend))
    elsewhere = keyed(counting(mode, work), connect(backend, pool_timeout=0.1))

    assert problem(await send(elsewhere)) == BUSY
    held.go.release()
    assert (await first).status == 201
    assert (await send(elsewhere)).headers[REPLAYED] == "true"
    assert work.runs == 0


class Asking:
    """Asks the unit for a statement before anybody looks at the key: on SQLite, that takes the writer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await current_session().execute(text("SELECT 1"))
        await self.app(scope, receive, send)


async def test_who_has_the_writer_waits_for_nobody_who_waits_for_the_writer(
    backend: Backend, connect: Connect, looks: list[bool]
) -> None:
    """It would hold up all who write, for as long as `wait` is."""
    work = Counted()
    work.runs = 1
    asking = keyed(counting("async", work), connect(backend), wait=LIMIT)
    asking.user_middleware.insert(1, Middleware(Asking))
    held = Held()
    writer = await held_elsewhere(held, connect(backend), "another")
    repeat = asyncio.ensure_future(send(keyed(counting("async", work), connect(backend), wait=LIMIT)))
    await wait_until_async(lambda: looks == [True, True], "the key is taken by one who waits for the writer")
    first = asyncio.ensure_future(send(asking))
    held.go.release()

    answers = [await each for each in (writer, first, repeat)]
    assert [answer.status for answer in answers] == [201] * 3
    assert looks == [True, True]
    assert len({answer.body for answer in answers[1:]}) == 1
    assert len(names(backend)) == 2


async def test_two_headers_with_the_same_keys_the_other_way_round_hold_up_nobody(
    backend: Backend, connect: Connect, looks: list[bool]
) -> None:
    work = Counted()
    work.runs = 1

    def both_headers() -> Any:
        app = keyed(counting("async", work), connect(backend), wait=LIMIT)
        app.user_middleware.append(Middleware(IdempotencyMiddleware, principal=None, header="X-Key"))
        return app

    held = Held()
    writer = await held_elsewhere(held, connect(backend), "another")
    pairs = [("a", "b"), ("b", "a")]
    requests = [
        asyncio.ensure_future(send(both_headers(), key, headers={"X-Key": other})) for key, other in pairs
    ]
    await wait_until_async(lambda: looks == [True] * 3, "both have a key, and wait for the writer")
    held.go.release()

    assert (await writer).status == 201
    answers = [await each for each in requests]
    assert {(answer.status, answer.body) for answer in answers} == {(201, b'{"run":2}')}
    assert names(backend) == ["run-1", "run-2"]


async def test_a_request_inside_of_a_request_is_told_of_the_dead_lock(
    backend: Backend, connect: Connect
) -> None:
    """Of an app that is mounted with both middlewares of its own, by one with both: its own key is in use."""
    database = connect(backend)
    inner = keyed(counting("async", work := Counted()), database, wait=LIMIT)
    app = keyed(counting("async", work), database, wait=LIMIT)
    app.router.routes.append(Mount("/inner", inner))

    answer = await send(app, path="/inner/work")

    assert problem(answer) == (500, "/problems/would-deadlock")
    assert (work.runs, names(backend)) == (0, [])
