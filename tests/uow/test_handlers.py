"""The app's own exception handlers, asked for what the database has refused (L3, L5)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.asgi import run_asgi
from tests.support.backends import Backend, Mode
from tests.uow.units import endpoint, insert, names, request, run
from uow import Database, UnitOfWorkMiddleware

pytestmark = pytest.mark.backends("sqlite", "pg18")


def wrapped(app: Callable[..., Any], database: Database, **options: Any) -> UnitOfWorkMiddleware:
    return UnitOfWorkMiddleware(app, database=database, **options)


def violating(session: Session) -> None:
    """COMMIT will refuse it, on every engine."""
    insert("never")(session)
    run("INSERT INTO notes (later) VALUES (99)")(session)


def answering(status: int) -> Any:
    async def handler(request: Request, error: Exception) -> Response:
        return JSONResponse({"mine": type(error).__name__, "path": request.url.path}, status)

    return handler


def answering_sync(request: Request, error: Exception) -> Response:
    return JSONResponse({"mine": type(error).__name__, "path": request.url.path}, 418)


class Answering:
    """A handler that is an object."""

    async def __call__(self, request: Request, error: Exception) -> Response:
        return JSONResponse({"mine": type(error).__name__, "path": request.url.path}, 418)


@pytest.mark.parametrize("handler", [answering(418), answering_sync, Answering()])
@pytest.mark.parametrize("cls", [IntegrityError, SQLAlchemyError])
async def test_the_apps_own_handler_answers_a_refused_commit(
    backend: Backend, mode: Mode, database: Database, handler: Any, cls: type[Exception]
) -> None:
    """L5: registered for the class of the error or one above it."""
    recorder = await request(database, mode, violating, handlers={cls: handler})

    assert (recorder.status, recorder.json()) == (418, {"mine": "IntegrityError", "path": "/work"})
    assert len(recorder.starts) == 1
    assert names(backend) == []


async def test_the_apps_own_handler_answers_an_error_in_a_handler_of_requests(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L3: as Starlette does it; the unit is rolled back, whatever the handler's status."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    recorder = await request(database, mode, insert("nut"), handlers={IntegrityError: answering(418)})
    lying = await request(database, mode, insert("nut"), handlers={IntegrityError: answering(200)})

    assert (recorder.status, recorder.json()["mine"]) == (418, "IntegrityError")
    assert (lying.status, lying.json()["type"]) == (500, "/problems/unit-doomed")


async def raising(request: Request, error: Exception) -> Response:
    raise LookupError("in the handler")


async def nothing(request: Request, error: Exception) -> None:
    return None


@pytest.mark.parametrize(
    ("handlers", "logged"),
    [
        ({IntegrityError: answering(200)}, "a handler said 200 of a unit that was not committed"),
        ({IntegrityError: raising}, "the handler for IntegrityError failed"),
        ({Exception: answering(418)}, "POST /work: "),
        ({LookupError: answering(418)}, "POST /work: "),
    ],
    ids=["says 200", "raises", "is for any crash", "is for something else"],
)
async def test_a_handler_that_cannot_be_believed_is_replaced_by_the_problem(
    backend: Backend,
    mode: Mode,
    database: Database,
    handlers: Any,
    logged: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """L5: never a success for what was not kept."""
    with caplog.at_level(logging.ERROR, "uow"):
        recorder = await request(database, mode, violating, handlers=handlers)

    assert (recorder.status, recorder.json()["type"]) == (409, "/problems/foreign-key-violation")
    assert len(recorder.starts) == 1
    assert logged in caplog.text
    assert "POST /work: " in caplog.text


async def test_the_handlers_of_an_app_are_found_from_outside_of_it(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L5: the middleware may be wrapped around the whole app instead of being added to it."""
    app = Starlette(
        routes=[Route("/work", endpoint(mode, violating), methods=["POST"])],
        exception_handlers={IntegrityError: answering(418)},
    )

    recorder = await run_asgi(wrapped(app, database), "POST", "/work")

    assert (recorder.status, recorder.json()["mine"]) == (418, "IntegrityError")


async def test_an_unhandled_database_error_is_answered_from_outside_of_an_app_too(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L5: Starlette's own 500, sent on the way out, is not the answer; that of a handler is."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")

    def app(handlers: Any = None) -> Starlette:
        route = Route("/work", endpoint(mode, insert("nut")), methods=["POST"])
        return Starlette(routes=[route], exception_handlers=handlers)

    plain = await run_asgi(wrapped(app(), database), "POST", "/work")
    mapped = await run_asgi(wrapped(app({IntegrityError: answering(500)}), database), "POST", "/work")

    assert (plain.status, plain.json()["type"]) == (409, "/problems/unique-violation")
    assert (mapped.status, mapped.json()["mine"]) == (500, "IntegrityError")
    assert len(plain.starts) == len(mapped.starts) == 1
