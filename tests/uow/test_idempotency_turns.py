"""Whose turn it is with a key, in one process: one at a time, in order, and at little cost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from tests.support.asgi import AsgiCall, Message
from tests.support.backends import Backend
from tests.support.wait import LIMIT
from tests.uow.keys import Counted, counting, keyed, make_keys, one
from uow import Database
from uow.idempotency._turns import Turn, Turns

SEED = 7


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

    async def taken(self: Turns, name: tuple[str, str], until: float, file: str | None) -> Turn | None:
        given.append(until)
        return await take(self, name, until, file)

    monkeypatch.setattr(Turns, "take", taken)
    app = keyed(counting("async", Counted()), database, wait=LIMIT)
    call = AsgiCall(app, "POST", "/work", headers={"Idempotency-Key": "k-1"})
    monkeypatch.setattr(call, "_receive", receive)

    assert (await call.run()).status == 201
    assert given[0] >= read[-1] + LIMIT
