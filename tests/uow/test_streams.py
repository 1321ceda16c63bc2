"""Answers that stream, and WebSockets, in process: what the order of messages and calls decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio.to_thread
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tests.support.asgi import AsgiCall, Message, run_asgi
from tests.support.backends import Backend, Mode
from tests.support.wait import wait_until_async
from tests.uow.units import Item, Told, app_of, make_tables, names, request
from uow import Database, UnitOfWorkMiddleware, current_session, current_unit, errors, new_unit, unit_options
from uow._exchange import Exchange

pytestmark = pytest.mark.backends("sqlite", "pg18")

Send = Callable[[Message], Any]
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
MORE: Message = {"type": "http.response.body", "body": b"a", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"b"}


async def read() -> int:
    return int(await current_session().scalar(text("SELECT count(*) FROM items")) or 0)


def streaming(database: Database, body: Callable[[], AsyncIterator[bytes]], **options: Any) -> Any:
    async def handle(_: Request) -> Response:
        return StreamingResponse(body())

    return app_of(handle, database, **options)


async def test_L15_a_unit_may_be_made_while_the_answer_streams(database: Database) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        yield str(await read()).encode()

    recorder = await run_asgi(streaming(database, body), "GET", "/work")

    assert (recorder.complete, recorder.body) == (True, b"first 0")


async def test_L15_a_thread_makes_one_too(database: Database) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        unit = await anyio.to_thread.run_sync(current_unit)
        yield unit.name.encode()

    recorder = await run_asgi(streaming(database, body), "GET", "/work")

    assert (recorder.complete, recorder.body) == (True, b"first GET /work")


async def test_L16_no_unit_is_kept_that_is_made_while_a_writing_answer_begins(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Exchange._make_unit

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begun: list[Any] = []

        def and_begin(exchange: Exchange) -> Any:
            unit = make(exchange)
            begun.append(send(START))
            return unit

        monkeypatch.setattr(Exchange, "_make_unit", and_begin)
        with pytest.raises(errors.UnitOfWorkClosed):
            current_unit()
        monkeypatch.undo()
        await begun[0]
        await send(LAST)

    recorder = await run_asgi(UnitOfWorkMiddleware(app, database=database), "POST", "/")

    assert (recorder.status, recorder.complete) == (200, True)


async def test_L15_a_stream_that_takes_too_long_is_cut(backend: Backend, database: Database) -> None:
    gave_up = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        await read()
        unit = current_unit()
        yield b"first"
        await wait_until_async(lambda: unit.outcome is not None, "the unit to be closed")
        gave_up.set()
        yield b"second"

    recorder = await run_asgi(streaming(database, body, stream_timeout=0.5), "GET", "/work")

    assert gave_up.is_set(), recorder
    assert (recorder.body, recorder.complete) == (b"first", False)
    assert isinstance(recorder.error, errors.UnitOfWorkClosed)
    assert "stream_timeout" in str(recorder.error)
    backend.wait_until_at_rest()


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_stream_timeout_is_above_nothing(seconds: float) -> None:
    with pytest.raises(ValueError, match="stream_timeout"):
        unit_options(stream_timeout=seconds)


async def test_L14_a_client_that_leaves_a_stream_is_told_of_once(
    backend: Backend, connect: Callable[..., Database]
) -> None:
    make_tables(backend)
    told = Told()
    database = connect(backend, observer=told)
    call: list[AsgiCall] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await receive()
        await read()
        unit = current_unit()
        await send(START)
        await send(MORE)
        call[0].disconnect()
        for _ in range(2):
            assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(errors.NoUnitOfWork):
            current_unit()
        await wait_until_async(lambda: unit.outcome is not None, "the unit to be closed")
        await send(LAST)

    call.append(AsgiCall(UnitOfWorkMiddleware(app, database=database), "GET", "/"))
    await call[0].run()

    assert told.gone == ["GET /"]
    assert told.outcomes == [("GET /", "rolled_back")]
    backend.wait_until_at_rest()


async def test_an_app_without_a_unit_that_answers_nothing_is_left_alone(database: Database) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        return

    recorder = await run_asgi(UnitOfWorkMiddleware(app, database=database), "GET", "/")

    assert recorder.messages == []


async def test_L25_a_forgotten_add_is_refused_before_the_first_byte(
    backend: Backend, mode: Mode, database: Database
) -> None:
    def forget(session: Session) -> None:
        session.add(Item(name="forgotten"))

    recorder = await request(database, mode, forget, method="GET", status=200)

    assert recorder.status == 500
    assert recorder.json()["type"] == "/problems/read-only-unit"
    assert names(backend) == []


async def test_L19_a_message_waits_for_the_commit_that_it_speaks_of(
    backend: Backend, database: Database
) -> None:
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "websocket.accept"})
        async with new_unit() as unit:
            unit.session.add(Item(name="kept"))
            with pytest.raises(errors.SendRefused, match="on_commit"):
                await send({"type": "websocket.send", "text": "too early"})
            async with new_unit(read_only=True):
                with pytest.raises(errors.SendRefused):
                    await send({"type": "websocket.send", "text": "inside of the other"})
        async with new_unit(read_only=True):
            await send({"type": "websocket.send", "text": str(await read())})

    async def keep(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await UnitOfWorkMiddleware(app, database=database)({"type": "websocket", "path": "/"}, receive, keep)

    assert [message.get("text") for message in sent] == [None, "1"]
    assert names(backend) == ["kept"]
