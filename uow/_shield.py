"""Work that goes on to its end when the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Coroutine
from typing import Any

import anyio

_running: set[Future[None]] = set()  # asyncio itself keeps only weak references to tasks


class Unfinished(Exception):
    """The work was not at its end in time; it was cancelled and left to itself."""


async def finish(work: Coroutine[Any, Any, None] | Future[None], *, seconds: float) -> None:
    """Run `work` in a task of its own to its end, whoever cancels the caller meanwhile.

    Raises what `work` raises; a cancellation that came meanwhile is raised afterwards instead, with the
    work's own error as its cause. Unfinished when `seconds` have passed.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    try:
        await _done_or_late(loop, task, seconds)
    except asyncio.CancelledError as interruption:
        await _wait_on(loop, task, loop.time() + seconds)
        failure = task.exception() if task.done() and not task.cancelled() else None
        _let_go(task)
        raise interruption from failure
    if not task.done():
        _let_go(task)
        raise Unfinished(f"not finished after {seconds:g} seconds")
    task.result()


async def _wait_on(loop: AbstractEventLoop, task: Future[None], deadline: float) -> None:
    """Wait on after a cancellation, and through any further one, until the deadline.

    A plain `asyncio.shield` would be cancelled again and again inside a cancelled anyio scope (Starlette
    streams in one), and anyio's shield alone does not stop `Task.cancel` (uvicorn's shutdown).
    """
    with anyio.CancelScope(shield=True):
        while not task.done() and (left := deadline - loop.time()) > 0:
            try:
                await _done_or_late(loop, task, left)
            except asyncio.CancelledError:
                continue


async def _done_or_late(loop: AbstractEventLoop, task: Future[None], seconds: float) -> None:
    """Return when the task is done or the time is up; cancelling this does not reach the task."""
    waiter: Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    task.add_done_callback(wake)
    timer = loop.call_later(seconds, wake)
    try:
        await waiter
    finally:
        timer.cancel()
        task.remove_done_callback(wake)


def _let_go(task: Future[None]) -> None:
    """Nobody waits any more: cancel what is not done, and retrieve its outcome when it comes."""
    if not task.done():
        task.add_done_callback(lambda late: late.cancelled() or late.exception())
        task.cancel()
