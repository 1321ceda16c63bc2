"""What somebody who wanted a request done twice, or another one's answer, would try."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.asgi import AsgiCall, lifespan
from tests.support.backends import Backend, Mode
from tests.support.wait import LIMIT
from tests.uow.keys import REPLAYED, Counted, counting, keyed, make_keys, rows, send
from tests.uow.units import names
from uow import Database
from uow.idempotency import _row
from uow.idempotency._turns import Turn, Turns

both = pytest.mark.backends("sqlite", "pg18")
one = pytest.mark.backends("sqlite")
SEED = 7


@pytest.mark.parametrize("nobody", [None, 0, b"", ()])
@one
async def test_a_principal_that_is_no_text_is_refused_and_shares_nothing(
    backend: Backend, database: Database, nobody: Any
) -> None:
    """It would be taken for "nobody in particular", and all such would share their answers."""
    make_keys(backend)
    app = keyed(counting("async", Counted()), database, principal=lambda scope: nobody)

    answer = await send(app)

    assert answer.status == 500
    assert "tells whose key it is as a str" in str(answer.error)
    assert (rows(backend), names(backend)) == ([], [])


@both
async def test_work_that_takes_longer_than_its_ttl_is_done_once(
    backend: Backend, mode: Mode, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_keys(backend)
    now = [1_000.0]
    monkeypatch.setattr(_row, "time", lambda: now[0])
    work = Counted(work=lambda _: now.__setitem__(0, now[0] + 61))
    app = keyed(counting(mode, work), database, ttl=60)

    first, repeat = [await send(app) for _ in range(2)]

    assert (first.body, repeat.body, repeat.headers[REPLAYED]) == (b'{"run":1}', b'{"run":1}', "true")
    now[0] += 60
    assert (await send(app)).body == b'{"run":2}'


class Between:
    """Stands between the unit and the keys, and makes a success of what is none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_changed(message: Message) -> None:
            await send({**message, "status": 200} if "status" in message else message)

        try:
            await self.app(scope, receive, send_changed)
        except ValueError:
            await JSONResponse("mended")(scope, receive, send)


@pytest.mark.parametrize("how", ["status", "exception"])
@both
async def test_a_key_is_not_committed_without_its_answer(
    backend: Backend, mode: Mode, database: Database, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All repeats would get 500 for as long as it is remembered, of a request that was answered with 200."""
    make_keys(backend)

    def fail(_: Any) -> None:
        if how == "exception":
            raise ValueError("out of stock")

    app = keyed(counting(mode, Counted(status=400, work=fail)), database)
    app.user_middleware.insert(1, Middleware(Between))

    for _ in range(2):
        answer = await send(app)
        assert answer.status == 500
        assert (rows(backend), names(backend)) == ([], [])
    assert "is not the one which IdempotencyMiddleware has seen" in caplog.text


@one
async def test_a_body_that_comes_byte_by_byte_costs_no_more_than_itself(
    backend: Backend, database: Database
) -> None:
    make_keys(backend)
    size = 50_000
    app = keyed(counting("async", Counted()), database, request_limit=size)
    await send(app, "warm")
    chunks = [b"%c" % (number % 256) for number in range(size)]
    call = AsgiCall(app, "POST", "/work", body=chunks, headers={"Idempotency-Key": "k-1"})

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    answer = await call.run()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()

    assert answer.status == 201
    assert peak < 20 * size + 1_000_000
    assert (await send(app, "k-1", body=b"".join(chunks))).headers[REPLAYED] == "true"


async def test_who_waits_for_a_key_wakes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all woke up whenever one is done, a thousand repeats would hold the event loop for ten seconds."""
    turns = Turns()
    until = asyncio.get_running_loop().time() + LIMIT
    order: list[int] = []
    waits = 0
    wait = asyncio.wait

    async def counted(futures: Any, **options: Any) -> Any:
        nonlocal waits
        waits += 1
        return await wait(futures, **options)

    async def take(number: int) -> None:
        turn = await turns.take(("", "k"), until)
        assert turn is not None
        order.append(number)
        await asyncio.sleep(0)
        turn.end()

    first = await turns.take(("", "k"), until)
    assert first is not None
    monkeypatch.setattr("uow.idempotency._turns.asyncio.wait", counted)
    tasks = [asyncio.ensure_future(take(number)) for number in range(100)]
    await asyncio.sleep(0)
    first.end()
    await asyncio.gather(*tasks)

    assert order == [*range(100)]
    assert waits == 100


async def test_a_key_is_with_one_at_a_time_whoever_is_cancelled() -> None:
    chance = random.Random(SEED)
    turns, inside, taken = Turns(), Counter[str](), 0
    loop = asyncio.get_running_loop()

    async def work(key: str) -> None:
        nonlocal taken
        turn: Turn | None = await turns.take(("", key), loop.time() + chance.uniform(0, 0.05))
        if turn is None:
            return
        inside[key] += 1
        taken += 1
        try:
            assert inside[key] == 1
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
        finally:
            inside[key] -= 1
            turn.end()
            turn.end()  # does nothing

    for _ in range(50):
        tasks = [asyncio.ensure_future(work(str(number % 3))) for number in range(40)]
        for task in tasks:
            if chance.random() < 0.4:
                loop.call_later(chance.uniform(0, 0.002), task.cancel)
        await asyncio.wait(tasks)
        for task in tasks:
            with suppress(asyncio.CancelledError):
                task.result()
    assert taken > 500
    after = await turns.take(("", "0"), 0.0)  # at once, or nobody would give it back any more
    assert after is not None
    after.end()


@one
async def test_a_wrong_order_stops_the_start(backend: Backend, database: Database) -> None:
    """Else all goes well until the first key comes, which is when it is needed."""
    app = keyed(counting("async", Counted()), database)
    app.user_middleware.reverse()
    with pytest.raises(RuntimeError, match="has to be inside of UnitOfWorkMiddleware"):
        async with lifespan(app):
            raise AssertionError("it has started")
    app.user_middleware.reverse()
    app.middleware_stack = None
    async with lifespan(app):
        pass


@one
async def test_a_body_that_comes_slowly_takes_nothing_of_the_wait(
    backend: Backend, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_keys(backend)
    loop = asyncio.get_running_loop()
    read: list[float] = []
    given: list[float] = []
    take = Turns.take

    async def receive() -> Message:
        read.append(loop.time())
        return {"type": "http.request", "body": b"half", "more_body": len(read) < 2}

    async def taken(self: Turns, name: tuple[str, str], until: float) -> Turn | None:
        given.append(until)
        return await take(self, name, until)

    monkeypatch.setattr(Turns, "take", taken)
    app = keyed(counting("async", Counted()), database, wait=LIMIT)
    call = AsgiCall(app, "POST", "/work", headers={"Idempotency-Key": "k-1"})
    monkeypatch.setattr(call, "_receive", receive)

    assert (await call.run()).status == 201
    assert given[0] >= read[-1] + LIMIT
