"""The cases of answers that stream, in `def` endpoints with generators that run in threads; `async_streams`
has the same ones, word for word.

A generator stops after its first chunk and goes on when the test says so.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter
from sqlalchemy import ScalarResult, select
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from tests.lifecycle.model import (
    ADD_ITEM,
    ALL_NAMES,
    MISSING_TABLE,
    NO_SUCH_ITEM,
    ROWS,
    Item,
    Part,
    PurposelyFailed,
    attempt_told,
    releases,
    rows_of,
    tell,
)
from tests.lifecycle.sync_endings import add_item
from uow import current_sync_session, new_unit

router = APIRouter()


def _pause(name: str) -> None:
    gate = threading.Event()
    releases[name] = gate.set
    tell(name, "paused")
    gate.wait()


def _streamed(chunks: Iterator[str], name: str, status: int, length: int) -> Response:
    headers = {"content-length": str(length)} if length else None
    return StreamingResponse(chunks, status, headers, background=BackgroundTask(tell, name, "background"))


# On a unit that reads


def _cursor(session: Session, name: str) -> ScalarResult[str]:
    return session.scalars(rows_of(name), execution_options={"yield_per": 1})


def _rows(name: str, how: str, begun: ScalarResult[str] | None) -> Iterator[str]:
    session = current_sync_session()
    if begun is not None:
        yield from begun
    elif how == "cursor":
        yield from _cursor(session, name)
    elif how == "execute":
        yield from session.scalars(rows_of(name))
    else:
        for number in ROWS:
            yield session.scalars(select(Item.name).where(Item.name == f"{name}-{number}")).one()


def _lines(name: str, pad: int, end: str, rows: Iterator[str]) -> Iterator[str]:
    first = True
    try:
        for row in rows:
            yield f"{row:{pad}}\n"
            if first:
                first = False
                _pause(name)
                _ends(name, end)
    finally:
        tell(name, "generator ended")


def _ends(name: str, end: str) -> None:
    if end == "raises":
        raise PurposelyFailed("a generator")
    if end == "writes":
        current_sync_session().execute(ADD_ITEM, {"name": f"{name}-written"})


@router.get("/stream")
def stream(
    name: str, how: str, end: str = "whole", status: int = 200, pad: int = 0, length: int = 0
) -> Response:
    begun = None
    if how == "cursor of the handler":
        begun = _cursor(current_sync_session(), name)
    return _streamed(_lines(name, pad, end, _rows(name, how, begun)), name, status, length)


@router.get("/stream-refused")
def stream_refused(name: str, how: str) -> Response:
    if how == "swallows":
        try:
            current_sync_session().execute(MISSING_TABLE)
        except Exception:
            tell(name, "swallowed")
    else:
        current_sync_session().add(Item(name=name))
    return _streamed(_lines(name, 0, "whole", _rows(name, "execute", None)), name, 200, 0)


# On a unit that writes


def _touches(session: Session, item: Item, begun: Any) -> dict[str, Callable[[], object]]:
    return {
        "execute": lambda: session.execute(ALL_NAMES),
        "flush": session.flush,
        "add": lambda: session.add(Item(name="never")),
        "cursor of the handler": begun.all,
        "lazy load": lambda: item.parts,
        "current_session": current_sync_session,
    }


def _own_unit(name: str) -> None:
    with new_unit() as unit:
        unit.sync_session.add(Item(name=f"{name}-own"))


def _write_early(session: Session, name: str) -> None:
    try:
        session.execute(ADD_ITEM, {"name": f"{name}-early"})
    except Exception as error:
        attempt_told(name, "early", error)
        raise


@router.post("/stream-after-writing")
def stream_after_writing(name: str, how: str = "", status: int = 201, length: int = 0) -> Response:
    session = add_item(name)
    begun = _cursor(session, name)
    touches = _touches(session, session.scalars(select(Item).limit(1)).one(), begun)
    if how == "refused":
        session.add(Part(name=name, item_id=NO_SUCH_ITEM))

    def chunks() -> Iterator[str]:
        if how == "early":
            _write_early(session, name)
        yield "first\n"
        _pause(name)
        if how in touches:
            try:
                touches[how]()
            except Exception as error:
                attempt_told(name, how, error)
                raise
            tell(name, f"{how}: nothing raised")
        elif how == "new_unit":
            _own_unit(name)
        elif how == "raises":
            raise PurposelyFailed("a generator")
        yield "last\n"

    return _streamed(chunks(), name, status, length)
