"""Greenlets that are used again: what happens in one call does not reach the next."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
from greenlet import GreenletExit, getcurrent
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import await_only

from uow import _greenlets
from uow._greenlets import spawn
from uow._sessions import UnitAsyncSession

variable: ContextVar[str] = ContextVar("variable", default="unset")


async def test_a_call_gets_its_arguments_and_gives_its_answer() -> None:
    assert await spawn(lambda *args, **kwargs: (args, kwargs), 1, two=2) == ((1,), {"two": 2})


async def test_a_call_may_wait_and_gets_what_was_awaited() -> None:
    async def later(value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    assert await spawn(lambda: await_only(later(await_only(later(1))))) == 3


async def test_an_exception_goes_both_ways() -> None:
    async def fails() -> None:
        raise LookupError("awaited")

    def call() -> str:
        with pytest.raises(LookupError, match="awaited"):
            await_only(fails())
        raise ValueError("called")

    with pytest.raises(ValueError, match="called"):
        await spawn(call)
    assert await spawn(lambda: "the next call") == "the next call"


async def test_a_greenlet_is_used_again() -> None:
    assert await spawn(getcurrent) is await spawn(getcurrent)


async def test_a_cancellation_reaches_the_call_and_leaves_the_greenlet_usable() -> None:
    seen: list[BaseException] = []

    def call() -> None:
        try:
            await_only(asyncio.Event().wait())
        except BaseException as error:
            seen.append(error)
            raise

    task = asyncio.create_task(spawn(call))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [type(error) for error in seen] == [asyncio.CancelledError]
    assert await spawn(lambda: 1) == 1


async def test_context_variables_are_those_of_the_task_in_both_directions() -> None:
    def call(name: str) -> str:
        before = variable.get()
        await_only(asyncio.sleep(0))
        variable.set(name)
        await_only(asyncio.sleep(0))
        return before

    async def task(name: str) -> tuple[str, str]:
        variable.set(f"of {name}")
        return await spawn(call, name), variable.get()

    names = [str(number) for number in range(100)]  # more than are kept
    answers = await asyncio.gather(*(task(name) for name in names))
    assert answers == [(f"of {name}", name) for name in names]
    assert variable.get() == "unset"
    assert len(_greenlets._idle.workers) <= _greenlets._KEPT


async def test_nothing_of_a_call_lives_on_in_an_idle_greenlet() -> None:
    class Thing:
        pass

    def refer(argument: Any) -> Any:
        return argument

    def fail(argument: Any) -> Any:
        raise ValueError("failed")

    thing = Thing()
    gone = weakref.ref(thing)
    await spawn(refer, thing)
    with pytest.raises(ValueError, match="failed"):
        await spawn(fail, thing)
    del thing
    gc.collect()
    assert gone() is None


def test_a_call_that_is_dropped_in_the_middle_ends_there() -> None:
    ended: list[BaseException] = []

    class Never:
        def __await__(self) -> Any:
            yield

    def call() -> None:
        try:
            await_only(Never())
        except BaseException as error:
            ended.append(error)
            raise

    dropped = spawn(call)
    dropped.send(None)
    dropped.close()
    assert [type(error) for error in ended] == [GeneratorExit]


def test_a_greenlet_that_is_dropped_with_its_call_ends_with_it() -> None:
    ended: list[BaseException] = []
    parent = getcurrent()

    def call() -> None:
        try:
            parent.switch()
        except BaseException as error:
            ended.append(error)
            raise

    worker: Any = _greenlets._Worker(_greenlets._serve)
    worker.switch(_greenlets._Call(call, (), {}))
    del worker
    assert [type(error) for error in ended] == [GreenletExit]


@pytest.mark.parametrize("name", ["execute", "scalar", "get", "get_one", "flush", "refresh"])
def test_a_method_of_the_session_is_sqlalchemys_own_in_other_greenlets(name: str) -> None:
    ours, plain = getattr(UnitAsyncSession, name), getattr(AsyncSession, name)
    assert ours is not plain
    assert ours.__code__ is plain.__code__
    assert "greenlet_spawn" in plain.__code__.co_names  # else the method is not quicker any more
    assert ours.__globals__["greenlet_spawn"] is spawn
