"""A key and a cancellation at each point where its request can be left: all of it is kept, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from tests.support.asgi import Recorder
from tests.support.backends import Backend, Mode
from tests.support.wait import wait_until_async
from tests.uow.keys import REPLAYED, Counted, counting, keyed, make_keys, rows, send
from tests.uow.units import names
from uow import Database

FEW = 400
"""More points than a request has."""


class Steps:
    """Runs a coroutine, and cancels its task when it waits for the N-th time."""

    def __init__(self, work: Coroutine[Any, Any, Recorder], point: int) -> None:
        self._work = work
        self._point = point
        self.was_hit = False

    def __await__(self) -> Generator[Any, Any, Recorder]:
        steps = self._work.__await__()
        value: Any = None
        while True:
            try:
                waited = steps.send(value)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # of a coroutine that answers so
            self._point -= 1
            if self._point == 0:
                self.was_hit = True
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                value = yield waited
            except BaseException as error:
                try:
                    waited = steps.throw(error)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]  # as above
                value = yield waited


async def run(steps: Steps) -> Recorder:
    return await steps


@pytest.mark.backends("sqlite", "pg18")
async def test_L12_L13_a_request_that_is_left_at_any_point_is_done_once_in_the_end(
    backend: Backend, mode: Mode, database: Database
) -> None:
    make_keys(backend)
    work = Counted()
    app = keyed(counting(mode, work), database)
    await send(app, "warm")
    for point in range(1, FEW):
        steps = Steps(send(app, f"k-{point}"), point)
        left = asyncio.ensure_future(run(steps))
        await asyncio.wait({left})
        before = len(names(backend))

        answer = await send(app, f"k-{point}")

        assert answer.status == 201
        done = len(names(backend)) - before
        assert (REPLAYED in answer.headers) is (done == 0), point
        assert len(names(backend)) == len(rows(backend)) == point + 1
        if not steps.was_hit:
            break
    else:
        raise AssertionError("it had more points than that")
    assert point > 3
    await wait_until_async(backend.write_lock_free, "nothing is left open")
