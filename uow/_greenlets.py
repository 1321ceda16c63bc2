"""Greenlets that are used again: SQLAlchemy makes and drops one for each awaited call of a session.

Making one takes 8 of the 10 microseconds that such a call costs. What happens inside is the same: the
context variables of the task, cancellation, exceptions; a traceback has one frame more.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

_KEPT = 64  # idle ones of a thread; each holds some 20 kB


class _Call:
    """One call and how it went."""

    __slots__ = ("_args", "_function", "_kwargs", "answer", "failure", "running")

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self.running = True
        self.answer: Any = None
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.answer = self._function(*self._args, **self._kwargs)
        except GreenletExit:
            raise  # the greenlet was dropped in the middle of it
        except BaseException as error:
            self.failure = error
        self.running = False


class _Worker(greenlet):
    """Runs one call after another, and goes back to whoever gave it the call."""

    __sqlalchemy_greenlet_provider__ = True  # what `await_only` looks for


def _serve(call: _Call) -> None:
    """What a worker runs: refers to no worker, or none could be freed, and to no call that is over."""
    while True:
        call.run()
        del call
        caller = getcurrent().parent
        assert caller is not None
        call = caller.switch()


class _Idle(threading.local):
    """The workers of this thread that wait for a call; a greenlet cannot change its thread."""

    def __init__(self) -> None:
        self.workers: list[_Worker] = []


_idle = _Idle()


def _switch(worker: _Worker, value: Any) -> Any:
    """Go on in the worker; in a frame of its own, or the tracer of Python 3.11 loses the next line."""
    return worker.switch(value)


async def spawn(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a sync call that may wait by `await_only`; as `sqlalchemy.util.greenlet_spawn`."""
    call = _Call(function, args, kwargs)
    workers = _idle.workers
    current = getcurrent()
    worker = workers.pop() if workers else _Worker(_serve)
    worker.parent = current
    worker.gr_context = current.gr_context
    awaited = _switch(worker, call)
    while call.running:
        try:
            value = await awaited
        except BaseException as error:
            awaited = worker.throw(type(error), error, error.__traceback__)
        else:
            awaited = _switch(worker, value)
    worker.gr_context = None
    if len(workers) < _KEPT:
        workers.append(worker)
    if call.failure is None:
        return call.answer
    try:
        raise call.failure
    finally:
        del call  # the traceback refers to this frame


def reusing_greenlets(method: Any) -> Any:
    """The same async method of SQLAlchemy's, calling `spawn` where it says `greenlet_spawn`."""
    names = method.__globals__ | {"greenlet_spawn": spawn}
    made = FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)
    made.__kwdefaults__ = method.__kwdefaults__
    return functools.update_wrapper(made, method)
