"""What reaches the client besides the head of the one answer: nothing of another one, and all that is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.middleware.errors import ServerErrorMiddleware

from tests.support.asgi import Message, run_asgi
from tests.support.backends import Backend
from tests.uow.units import insert, names
from uow import Database, UnitOfWorkMiddleware, current_session

pytestmark = pytest.mark.backends("sqlite", "pg18")

Send = Callable[[Message], Any]
START: Message = {"type": "http.response.start", "status": 201, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"first"}


def swallow(session: Session) -> None:
    insert("swallowed")(session)
    with suppress(SQLAlchemyError):
        insert("swallowed")(session)


async def test_the_body_of_a_second_answer_does_not_go_out_under_the_first_head(
    backend: Backend, database: Database
) -> None:
    """One answer: the first waits for its COMMIT while somebody gives up on it and answers 504."""

    committing = asyncio.Event()

    async def inner(scope: Any, receive: Any, send: Send) -> None:
        session = current_session()
        await session.run_sync(insert("kept"))
        event.listen(session.sync_session, "before_commit", lambda _: committing.set())
        await send(START)
        await send(BODY)

    async def impatient(scope: Any, receive: Any, send: Send) -> None:
        task = asyncio.ensure_future(inner(scope, receive, send))
        await committing.wait()
        await send({**START, "status": 504})
        await asyncio.wait({task})
        await send({**BODY, "body": b"second"})

    recorder = await run_asgi(UnitOfWorkMiddleware(impatient, database=database), "POST", "/")

    assert [start["status"] for start in recorder.starts] == [201]
    assert recorder.body == b""
    assert names(backend) == ["kept"]
    backend.wait_until_at_rest()


async def test_a_500_page_of_the_app_goes_out_when_something_else_has_failed(
    backend: Backend, database: Database
) -> None:
    """L4: the swallowed database error is not what the client is told of."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(swallow)
        raise ValueError("a bug of the app's")

    page = ServerErrorMiddleware(app)
    recorder = await run_asgi(UnitOfWorkMiddleware(page, database=database), "POST", "/")

    assert recorder.status == 500
    assert recorder.body == b"Internal Server Error"
    assert isinstance(recorder.error, ValueError)
    assert names(backend) == []
    backend.wait_until_at_rest()


async def test_a_process_that_is_to_end_ends_also_after_a_refusal(
    backend: Backend, database: Database
) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(swallow)
        try:
            await send(START)
        except Exception:
            raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt):
        await run_asgi(UnitOfWorkMiddleware(app, database=database), "POST", "/")

    assert names(backend) == []
    backend.wait_until_at_rest()


@pytest.mark.parametrize("with_unit", [True, False])
async def test_what_belongs_to_no_answer_passes_before_it(database: Database, with_unit: bool) -> None:
    """A debug message of Starlette's templates, an early hint."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        if with_unit:
            await current_session().execute(text("SELECT 1"))
        await send({"type": "http.response.debug", "info": {}})
        await send(START)
        await send(BODY)

    recorder = await run_asgi(UnitOfWorkMiddleware(app, database=database), "POST", "/")

    kinds = [message["type"] for message in recorder.messages]
    assert kinds == ["http.response.debug", "http.response.start", "http.response.body"]


async def test_a_body_without_a_start_goes_nowhere(backend: Backend, database: Database) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(insert("never"))
        await send(BODY)

    recorder = await run_asgi(UnitOfWorkMiddleware(app, database=database), "POST", "/")

    assert recorder.messages == []
    assert names(backend) == []
