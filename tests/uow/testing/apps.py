"""An app of many small endpoints, in both kinds of session, and how tests call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.routing import Route

from tests.support.backends import Mode
from tests.uow.units import Item, Work, count, endpoint, insert
from uow import Database, UnitOfWorkMiddleware, on_commit

Calls = list[str]


def broken(session: Session) -> None:
    insert("broken")(session)
    raise LookupError("the handler fails")


def saved_in_part(session: Session) -> None:
    insert("kept")(session)
    nested = session.begin_nested()
    insert("dropped")(session)
    nested.rollback()


def streamed(session: Session) -> list[str]:
    return list(
        session.scalars(text("SELECT name FROM items ORDER BY name"), execution_options={"yield_per": 1})
    )


def by_savepoint(session: Session) -> int:
    with session.begin_nested():
        return count(session)


def at_odds(session: Session) -> None:
    session.execute(text("INSERT INTO notes (later) VALUES (77)"))


def item_and_note(session: Session) -> None:
    session.execute(text("INSERT INTO notes (later) VALUES (77)"))
    session.execute(text("INSERT INTO items (id, name) VALUES (77, 'late')"))


def committed_by_text(session: Session) -> None:
    insert("by text")(session)
    session.execute(text("COMMIT"))


def rolled_back_by_text(session: Session) -> None:
    insert("undone")(session)
    session.execute(text("ROLLBACK"))


def begun_anew(session: Session) -> None:
    session.execute(text("COMMIT"))
    session.execute(text("BEGIN"))


def with_objects(session: Session) -> str:
    item = Item(name="object")
    session.add(item)
    session.flush()
    item.stock = 3
    return item.name


def all_names(session: Session) -> list[str]:
    return list(session.scalars(text("SELECT name FROM items ORDER BY name")))


WORK: dict[str, Work[Any]] = {
    "nut": insert("nut"),
    "bolt": insert("bolt"),
    "names": all_names,
    "count": count,
    "broken": broken,
    "part": saved_in_part,
    "stream": streamed,
    "savepoint": by_savepoint,
    "odds": at_odds,
    "pair": item_and_note,
    "commit": committed_by_text,
    "rollback": rolled_back_by_text,
    "again": begun_anew,
    "object": with_objects,
}


def app_with(database: Database, mode: Mode, **more: Work[Any]) -> Starlette:
    """Each piece of work under its name, for GET and for POST."""
    routes = [
        Route(f"/{name}", endpoint(mode, work, 200), methods=["GET", "POST"])
        for name, work in (WORK | more).items()
    ]
    app = Starlette(routes=routes)
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    return app


def telling(calls: Calls, word: str) -> Callable[[Session], None]:
    """Work that inserts `word` and says so after the commit."""

    def work(session: Session) -> None:
        insert(word)(session)
        on_commit(lambda: calls.append(word))

    return work
