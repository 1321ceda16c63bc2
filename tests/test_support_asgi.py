"""Recorded ASGI calls: what they record is what happened, in the order in which it happened."""

import anyio
import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from tests.support.asgi import AsgiCall, Timeline, lifespan, run_asgi, watch
from tests.support.backends import Backend, Mode
from tests.support.sample_app import app_of, items


async def test_the_answer_stands_behind_the_commit(
    items_table: Backend, mode: Mode, timeline: Timeline
) -> None:
    made = create_async_engine(items_table.url("async")) if mode == "async" else None
    engine = made or create_engine(items_table.url("sync"))
    app = app_of(engine)
    with watch(timeline):
        async with lifespan(app) as state:
            answer = await run_asgi(app, "POST", "/items/?name=nut", json={}, state=state, timeline=timeline)
    assert timeline == ["BEGIN", "COMMIT", "start 201", "body last"]
    assert (answer.status, answer.complete, answer.error) == (201, True, None)
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"pid"}
    assert answer.scope["state"]["lifespan"] == "up"
    assert items_table.count("items") == 1


async def test_a_refused_statement_rolls_back_and_the_error_is_kept(
    items_table: Backend, timeline: Timeline
) -> None:
    items_table.execute("INSERT INTO items (name) VALUES ('nut')")
    engine = create_async_engine(items_table.url("async"))
    with watch(timeline, engine):
        answer = await run_asgi(app_of(engine), "POST", "/items/?name=nut", timeline=timeline)
    await engine.dispose()
    assert timeline == ["BEGIN", "ROLLBACK", "start 500", "body last"]
    assert isinstance(answer.error, IntegrityError)


@pytest.mark.backends("pg18")
async def test_a_refused_commit_is_told(items_table: Backend, timeline: Timeline) -> None:
    deferred = "ALTER TABLE items ADD CONSTRAINT late UNIQUE (name) DEFERRABLE INITIALLY DEFERRED"
    items_table.execute("ALTER TABLE items DROP CONSTRAINT items_name_key; " + deferred)
    items_table.execute("INSERT INTO items (name) VALUES ('nut')")
    engine = create_async_engine(items_table.url("async"))
    with watch(timeline, engine):
        answer = await run_asgi(app_of(engine), "POST", "/items/?name=nut", timeline=timeline)
    await engine.dispose()
    assert timeline[:2] == ["BEGIN", "COMMIT failed"]
    assert answer.status == 500


@pytest.mark.backends("sqlite")
def test_only_the_watched_engine_is_told_of_and_only_while_it_is_watched(
    items_table: Backend, timeline: Timeline
) -> None:
    watched, other = create_engine(items_table.url("sync")), create_engine(items_table.url("sync"))
    with watch(timeline, watched):
        for engine, name in ((watched, "nut"), (other, "bolt"), (watched, "pin")):
            with engine.begin() as connection:
                connection.execute(insert(items).values(name=name))
    assert timeline == ["BEGIN", "COMMIT"] * 2
    with watched.begin() as connection:
        connection.execute(insert(items).values(name="cog"))
    assert len(timeline) == 4
    watched.dispose()
    other.dispose()


async def test_a_body_comes_in_the_chunks_that_were_given() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        chunks = [chunk async for chunk in Request(scope, receive).stream()]
        await PlainTextResponse("|".join(chunk.decode() for chunk in chunks))(scope, receive, send)

    answer = await run_asgi(app, "PUT", "/?x=1", body=[b"a", b"b"], headers={"X-Of": "mine"})
    assert answer.body == b"a|b|"
    assert answer.scope["query_string"] == b"x=1"
    assert (b"x-of", b"mine") in answer.scope["headers"]


async def test_a_client_leaves_when_the_test_says_so() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        heard.extend([await receive(), await receive()])

    call = AsgiCall(app, "GET", "/")
    async with anyio.create_task_group() as group:
        group.start_soon(call.run)
        await call.started.wait()
        await anyio.lowlevel.checkpoint()
        assert [message["type"] for message in heard] == []
        call.disconnect()
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]
    assert (call.recorder.status, call.recorder.complete) == (200, False)


@pytest.mark.parametrize("failing", [0, 1])
async def test_sending_to_a_client_that_has_gone_fails(failing: int, timeline: Timeline) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = StreamingResponse(iter(["a", "b"]))
        await response(scope, receive, send)

    answer = await run_asgi(app, "GET", "/", fail_send_at=failing, spec_version="2.4", timeline=timeline)
    assert isinstance(answer.error, ClientDisconnect)
    assert timeline == ["start 200"][:failing]
    assert answer.status == (200 if failing else None)


async def test_what_an_app_raises_after_its_answer_is_kept_beside_the_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("done", 202)(scope, receive, send)
        raise ValueError("too late")

    answer = await run_asgi(app, "GET", "/")
    assert (answer.status, answer.body, str(answer.error)) == (202, b"done", "too late")


@pytest.mark.parametrize("fails_at", ["startup", "shutdown"])
async def test_a_lifespan_that_fails_is_an_error(fails_at: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            phase = (await receive())["type"]
            word = "failed" if phase.endswith(fails_at) else "complete"
            await send({"type": f"{phase}.{word}"})

    with pytest.raises(RuntimeError, match=f"{fails_at}.failed"):
        async with lifespan(app):
            pass


async def test_an_app_that_knows_no_lifespan_is_an_error() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        return

    with pytest.raises(RuntimeError, match="ended its lifespan at startup"):
        async with lifespan(app):
            pass
