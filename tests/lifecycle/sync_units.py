"""The cases about reading, units and what outlives a request, in `def` endpoints; `async_units` has the
same ones, word for word.
"""

import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from sqlalchemy import func, select, text
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response

from tests.lifecycle.model import (
    ADD_ITEM,
    ALL_NAMES,
    UNLOCK,
    Item,
    PurposelyFailed,
    answer,
    attempt_told,
    releases,
    tell,
    tell_on_commit,
)
from tests.lifecycle.sync_endings import add_item
from uow import current_session, current_sync_session, current_unit, new_unit, on_commit, unit_options

router = APIRouter()


@router.get("/health")
def health() -> Response:
    return Response(status_code=200)


@router.get("/items")
def names(name: str) -> list[str]:
    return list(current_sync_session().scalars(ALL_NAMES.where(Item.name == name)))


# After the answer


@router.post("/callbacks")
def callbacks(name: str, status: int = 201) -> Response:
    def called() -> None:
        tell(name, "called")

    def fails() -> None:
        tell(name, "fails")
        raise PurposelyFailed("a callback")

    add_item(name)
    for callback in (partial(tell, name, "second"), fails, called, partial(tell, name, "last")):
        on_commit(callback)
    return answer(name, status)


@router.post("/background")
def background(name: str, task: str) -> Response:
    add_item(name)
    return Response(status_code=201, background=BackgroundTask(_BACKGROUND[task], name))


def _asks_for_session(name: str) -> None:
    try:
        current_sync_session()
    except Exception as error:
        attempt_told(name, "current_session", error)


def _uses_new_unit(name: str) -> None:
    with new_unit():
        current_sync_session().add(Item(name=f"{name}-background"))
    tell(name, "background")


def _fails(name: str) -> None:
    raise PurposelyFailed("a background task")


_BACKGROUND = {"session": _asks_for_session, "new_unit": _uses_new_unit, "fails": _fails}


@router.api_route("/outlives", methods=["GET", "POST"])
def outlives(name: str) -> Response:
    """Leave a thread behind that has captured all there is to capture."""
    attempts, item = _captured(name)
    gate = threading.Event()
    releases[name] = gate.set
    run = copy_context().run
    threading.Thread(target=run, args=(_try_later, name, gate, attempts, item), daemon=True).start()
    return Response(status_code=200)


def _captured(name: str) -> tuple[dict[str, Callable[[], object]], Item]:
    session = current_sync_session()
    item = (session.scalars(select(Item).order_by(Item.id))).first()
    assert item is not None
    result = session.execute(ALL_NAMES)
    scalars = session.scalars(ALL_NAMES)
    stream = session.execute(ALL_NAMES, execution_options={"yield_per": 1})

    def lazy_load() -> object:
        return item.parts

    def rows() -> object:
        return result.all()

    def values() -> object:
        return scalars.all()

    def current() -> object:
        return current_sync_session()

    def add() -> object:
        session.add(Item(name=name))
        return None

    attempts: dict[str, Callable[[], object]] = {
        "execute": lambda: session.execute(ALL_NAMES),
        "get": lambda: session.get(Item, 1),
        "flush": session.flush,
        "begin_nested": session.begin_nested,
        "commit": session.commit,
        "rollback": session.rollback,
        "add": add,
        "result": rows,
        "scalars": values,
        "stream": stream.all,
        "lazy load": lazy_load,
        "current_session": current,
    }
    return attempts, item


def _try_later(
    name: str, gate: threading.Event, attempts: dict[str, Callable[[], object]], item: Item
) -> None:
    gate.wait()
    for kind, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            attempt_told(name, kind, error)
        else:
            attempt_told(name, kind, None)
    tell(name, f"still readable: {item.name}")


# Reading, and who writes although he reads


def _write_while_reading(name: str, how: str) -> Response:
    session = current_sync_session()
    if how == "orm":
        session.add(Item(name=name))
        session.flush()
    elif how == "raw":
        session.execute(text("INSERT INTO items (name) VALUES (:name)"), {"name": name})
    elif how == "nested":
        with session.begin_nested():
            session.execute(ADD_ITEM, {"name": name})
    elif how == "swallowed":
        try:
            session.execute(ADD_ITEM, {"name": name})
        except Exception:
            tell(name, "swallowed")
    else:
        session.add(Item(name=name))
    return Response(status_code=200)


@router.api_route("/reads", methods=["GET", "HEAD", "OPTIONS"])
def reads(name: str, how: str) -> Response:
    return _write_while_reading(name, how)


@router.get("/unlocks")
def unlocks() -> Response:
    session = current_sync_session()
    session.execute(UNLOCK[session.get_bind().dialect.name])
    return Response(status_code=200)


@router.get("/may-write")
@unit_options(read_only=False)
def may_write(name: str, how: str) -> Response:
    return _write_while_reading(name, how)


@router.post("/may-not-write")
@unit_options(read_only=True)
def may_not_write(name: str, how: str) -> Response:
    return _write_while_reading(name, how)


# Which unit, which session


def _unit_of_dependency() -> int:
    return id(current_unit())


@router.post("/one-unit")
def one_unit(name: str, theirs: Annotated[int, Depends(_unit_of_dependency)]) -> Response:
    session = add_item(name)
    same = theirs == id(current_unit()) and session is current_sync_session() is current_unit().sync_session
    return JSONResponse({"same": same}, 201)


@router.post("/mixed")
def mixed(name: str, first: str) -> Response:
    if first == "own":
        add_item(name)
        current_session()
    else:
        current_session().add(Item(name=name))
        current_sync_session()
    return answer(name, 201)


@router.post("/audit")
def audit(name: str) -> Response:
    with new_unit():
        current_sync_session().add(Item(name=f"{name}-audit"))
        on_commit(partial(tell, name, "audited"))
    add_item(name)
    raise HTTPException(401)


@router.post("/audit-inside")
def audit_inside(name: str, status: int = 401) -> Response:
    session = add_item(name)
    with new_unit(name="the audit"):
        assert current_sync_session() is not session
        current_sync_session().execute(ADD_ITEM, {"name": f"{name}-audit"})
    assert current_sync_session() is session
    return answer(name, status)


@router.post("/reads-inside")
def reads_inside(name: str) -> Response:
    add_item(name)
    with new_unit(read_only=True) as unit:
        seen = unit.sync_session.scalar(select(func.count()).where(Item.name == name))
    return JSONResponse({"seen": seen}, 201)


@router.post("/undone-inside")
def undone_inside(name: str) -> Response:
    try:
        with new_unit():
            current_sync_session().add(Item(name=f"{name}-undone"))
            current_sync_session().flush()
            tell_on_commit(f"{name}-undone")
            raise PurposelyFailed("a unit inside")
    except PurposelyFailed:
        add_item(name)
    return answer(name, 201)
