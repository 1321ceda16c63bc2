"""The cases of how a request ends, in `def` endpoints; `async_endings` has the same ones, word for word."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio.from_thread
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from tests.lifecycle.model import (
    ADD_ITEM,
    FATAL,
    MISSING_TABLE,
    NO_SUCH_ITEM,
    Item,
    MappedError,
    Part,
    PurposelyFailed,
    answer,
    releases,
    tell,
    tell_on_commit,
)
from uow import current_sync_session, current_unit, unit_options

router = APIRouter()


def add_item(name: str) -> Session:
    """Write one item, and register a callback."""
    session = current_sync_session()
    session.add(Item(name=name))
    session.flush()
    tell_on_commit(name)
    return session


# How a request ends


@router.post("/write")
def write(name: str, status: int = 201, body: bool = False) -> Response:
    add_item(name)
    return answer(name, status, b"written" if body else b"")


@router.post("/failed-login")
@unit_options(commit_on={401})
def failed_login(name: str, status: int = 401) -> Response:
    add_item(name)
    raise HTTPException(status)


@router.post("/raises")
def raises(name: str, kind: str, status: int = 500) -> Response:
    add_item(name)
    if kind == "http":
        raise HTTPException(status)
    raise MappedError(status) if kind == "mapped" else PurposelyFailed(name)


class Answer(BaseModel):
    """What `/invalid-answer` promises."""

    id: int


@router.post("/invalid-answer", response_model=Answer)
def invalid_answer(name: str) -> Any:
    add_item(name)
    return {"id": "not a number"}


@router.post("/commit-refused")
def commit_refused(name: str) -> Response:
    session = add_item(name)
    session.add(Part(name=name, item_id=NO_SUCH_ITEM))
    session.flush()
    return answer(name, 201)


@router.post("/flush-refused")
def flush_refused(name: str) -> Response:
    session = add_item(name)
    session.add(Item(name=name))
    return answer(name, 201)


@router.post("/flush-refused-early")
def flush_refused_early(name: str) -> Response:
    session = add_item(name)
    session.add(Item(name=name))
    session.flush()
    return answer(name, 201)


@router.post("/dry-run")
def dry_run(name: str) -> Response:
    add_item(name)
    current_unit().set_rollback_only()
    return answer(name, 201)


# Errors of the database that the handler swallows


def _fail(session: Session, name: str, how: str) -> None:
    """Do what the database refuses: the name is taken."""
    if how == "statement":
        session.execute(ADD_ITEM, {"name": name})
    elif how == "flush":
        session.add(Item(name=name))
        session.flush()
    elif how == "fatal":
        session.execute(FATAL[session.get_bind().dialect.name], {"name": name})
    else:
        session.execute(MISSING_TABLE)


@router.post("/swallows")
def swallows(name: str, how: str, status: int = 201) -> Response:
    session = add_item(name)
    with contextlib.suppress(SQLAlchemyError):
        _fail(session, name, how)
    return answer(name, status)


@router.get("/swallows-reading")
def swallows_reading() -> Response:
    with contextlib.suppress(SQLAlchemyError):
        current_sync_session().execute(MISSING_TABLE)
    return Response(status_code=200)


@router.post("/contains")
def contains(name: str, how: str) -> Response:
    session = add_item(name)
    try:
        with session.begin_nested():
            session.add(Item(name=f"{name}-inner"))
            session.flush()
            _fail(session, name, how)
    except SQLAlchemyError:
        pass
    session.add(Item(name=f"{name}-later"))
    return answer(name, 201)


@router.post("/swallows-inside")
def swallows_inside(name: str, how: str, contained: bool) -> Response:
    session = add_item(name)
    try:
        with session.begin_nested():
            session.add(Item(name=f"{name}-inner"))
            session.flush()
            try:
                _fail(session, name, how)
            except SQLAlchemyError:
                tell(name, "swallowed")
    except SQLAlchemyError:
        tell(name, "raised again")
        if not contained:
            raise
    return answer(name, 201)


# Handlers that settle


def _begin_block(session: Session) -> None:
    with session.begin():
        raise AssertionError("a begin() block was entered")


def _transaction_commit(session: Session) -> None:
    transaction = session.get_transaction()
    assert transaction is not None
    transaction.commit()


def _connection_commit(session: Session) -> None:
    session.connection().commit()


def _connection_invalidate(session: Session) -> None:
    session.connection().invalidate()


def _connection_block(session: Session) -> None:
    with session.connection() as connection:  # which closes it at the end
        connection.commit()


def _transaction_close(session: Session) -> None:
    transaction = session.get_transaction()
    assert transaction is not None
    transaction.close()


def _driver_commit(session: Session) -> None:
    driver: Any = session.connection().connection.driver_connection
    driver.execute("COMMIT")


_SETTLES: dict[str, Callable[[Session], object]] = {
    "commit": lambda session: session.commit(),
    "begin": _begin_block,
    "reset": lambda session: session.reset(),
    "invalidate": lambda session: session.invalidate(),
    "transaction.commit": _transaction_commit,
    "connection.commit": _connection_commit,
    "connection.invalidate": _connection_invalidate,
    "connection block": _connection_block,
    "transaction.close": _transaction_close,
    "driver's COMMIT": _driver_commit,
    "COMMIT": lambda session: session.execute(text("COMMIT")),
    "commit and chain": lambda session: session.execute(text(" commit and chain")),
    "ROLLBACK": lambda session: session.execute(text("ROLLBACK")),
    "rollback and chain": lambda session: session.execute(text(" rollback and chain")),
}


@router.post("/settles")
def settles(name: str, how: str, status: int = 201) -> Response:
    session = add_item(name)
    _SETTLES[how](session)
    return answer(name, status)


@router.post("/rolls-back")
def rolls_back(
    name: str, status: int, how: str = "session", more: bool = False, pending: bool = False
) -> Response:
    if pending:
        session = current_sync_session()
        session.add(Item(name=name))
    else:
        session = add_item(name)
    if how == "session":
        session.rollback()
    elif how == "transaction":
        transaction = session.get_transaction()
        assert transaction is not None
        transaction.rollback()
    else:
        session.connection().rollback()
    if more:
        session.execute(ADD_ITEM, {"name": f"{name}-more"})
    return answer(name, status)


@router.post("/closes")
def closes(name: str, how: str) -> Response:
    session = add_item(name)
    if how == "block":
        with session:
            pass
    else:
        session.close()
    session.add(Item(name=f"{name}-later"))
    return answer(name, 201)


# Requests that somebody gives up


@router.post("/stands")
def stands(name: str) -> Response:
    """Write, and stand still until the test says otherwise."""
    add_item(name)
    gate = threading.Event()
    releases[name] = gate.set
    tell(name, "standing")
    gate.wait()
    return answer(name, 201)


@router.post("/until-gone")
def until_gone(request: Request, name: str, status: int) -> Response:
    """Write, notice that the client has gone, and answer all the same."""
    add_item(name)
    tell(name, "standing")
    while not anyio.from_thread.run(request.is_disconnected):
        time.sleep(0.01)
    return answer(name, status)
