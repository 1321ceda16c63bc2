"""The cases of threads that share the one session of their unit."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

from fastapi import APIRouter
from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.responses import Response

from tests.lifecycle.model import ADD_ITEM, ROWS, answer
from uow import current_sync_session

router = APIRouter()


def _insert(name: str) -> None:
    """A call of a repository."""
    current_sync_session().execute(ADD_ITEM, {"name": name})


def _in_thread(number: int, call: Callable[..., Any], *args: Any) -> "Future[None]":
    """Run this in a thread of its own, inside the unit."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            done.set_result(call(*args))
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), name=f"thread-{number}", daemon=True).start()
    return done


def _in_turn(name: str, session: Session) -> None:
    for number in ROWS:
        _in_thread(number, _insert, f"{name}-{number}").result()


def _overlapping(name: str, session: Session) -> None:
    """The second thread comes while the first one is inside its call."""
    inside, go = threading.Event(), threading.Event()

    def stop_the_first(_: Any) -> None:
        if not inside.is_set():
            inside.set()
            go.wait()

    event.listen(session, "do_orm_execute", stop_the_first)
    first = _in_thread(1, _insert, f"{name}-1")
    inside.wait()
    try:
        _in_thread(2, _insert, f"{name}-2").result()
    finally:
        go.set()
        first.result()


_THREADS: dict[str, Callable[[str, Session], None]] = {"in turn": _in_turn, "overlapping": _overlapping}


@router.post("/shares")
def shares(name: str, how: str) -> Response:
    _THREADS[how](name, current_sync_session())
    return answer(name, 201)
