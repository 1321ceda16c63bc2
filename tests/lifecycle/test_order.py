"""The order of what happens in one request: every message to the server and every event of the
database on one timeline, in this process.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.lifecycle.model import ALL_NAMES, NO_SUCH_ITEM, Item, Part
from tests.support.asgi import Recorder, Timeline, run_asgi, watch
from tests.support.backends import Backend, Mode
from tests.support.variant import retry_of_this_run
from uow import Database, UnitOfWorkMiddleware, current_session, current_sync_session, current_unit, on_commit

Finish = Callable[[Timeline], Response]


def _plain(timeline: Timeline, status: int = 201) -> Response:
    return Response("done", status, background=BackgroundTask(timeline.append, "background"))


def _streamed(timeline: Timeline) -> Response:
    async def chunks() -> AsyncIterator[str]:
        for chunk in ("a", "b"):
            yield chunk

    return StreamingResponse(chunks(), 201, background=BackgroundTask(timeline.append, "background"))


def _raised(_: Timeline) -> Response:
    raise HTTPException(409)


def _crashed(_: Timeline) -> Response:
    raise RuntimeError("a crash on purpose")


def _dry(timeline: Timeline) -> Response:
    current_unit().set_rollback_only()
    return _plain(timeline)


async def _call(
    backend: Backend, mode: Mode, timeline: Timeline, name: str, finish: Finish, *, orphan: bool = False
) -> Recorder:
    """Make one request that inserts an item, and a part of no item if `orphan`, and then answers."""
    rows: list[Item | Part] = [Item(name=name)]
    if orphan:
        rows.append(Part(name=name, item_id=NO_SUCH_ITEM))

    def written() -> Response:
        timeline.append("INSERT")
        on_commit(partial(timeline.append, "on_commit 1"))
        on_commit(partial(timeline.append, "on_commit 2"))
        return finish(timeline)

    async def write(_: Request) -> Response:
        current_session().add_all(rows)
        await current_session().flush()
        return written()

    def write_sync(_: Request) -> Response:
        current_sync_session().add_all(rows)
        current_sync_session().flush()
        return written()

    endpoint = write if mode == "async" else write_sync
    async with _app(backend, Route("/", endpoint, methods=["POST"])) as app:
        with watch(timeline):
            return await run_asgi(app, "POST", "/", timeline=timeline)


@contextlib.asynccontextmanager
async def _app(backend: Backend, *routes: Route) -> AsyncIterator[Starlette]:
    async with Database(backend.database_url, pool_size=1, max_overflow=0) as database:
        app = Starlette(routes=list(routes))
        app.add_middleware(UnitOfWorkMiddleware, database=database, retry=retry_of_this_run())
        yield app


def _rows(backend: Backend, name: str) -> int:
    return int(backend.query("SELECT count(*) FROM items WHERE name = ?", (name,))[0][0])


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(backend: Backend) -> Iterator[None]:
    yield
    backend.wait_until_at_rest()


async def test_L1_and_L17_commit_then_the_answer_then_callbacks_then_the_background_task(
    backend: Backend, mode: Mode, timeline: Timeline, name: str
) -> None:
    await _call(backend, mode, timeline, name, _plain)
    assert timeline == [
        "BEGIN", "INSERT", "COMMIT", "start 201", "body last", "on_commit 1", "on_commit 2", "background",
    ]  # fmt: skip
    assert _rows(backend, name) == 1


async def test_L1_a_streamed_answer_begins_after_commit_too(
    backend: Backend, mode: Mode, timeline: Timeline, name: str
) -> None:
    await _call(backend, mode, timeline, name, _streamed)
    assert timeline == [
        "BEGIN", "INSERT", "COMMIT", "start 201", "body", "body", "body last", "on_commit 1", "on_commit 2",
        "background",
    ]  # fmt: skip


@pytest.mark.promise("L2", "L3", "L4", "L10")
@pytest.mark.parametrize(
    ("finish", "answer"),
    [
        (partial(_plain, status=409), ["start 409", "body last", "background"]),
        (_raised, ["start 409", "body last"]),
        (_crashed, ["start 500", "body last"]),
        (_dry, ["start 201", "body last", "background"]),
    ],
    ids=["L2 returned", "L3 raised", "L4 crashed", "L10 dry run"],
)
async def test_what_is_not_to_be_kept_is_rolled_back_before_the_answer(
    backend: Backend, mode: Mode, timeline: Timeline, name: str, finish: Finish, answer: list[str]
) -> None:
    await _call(backend, mode, timeline, name, finish)
    assert timeline == ["BEGIN", "INSERT", "ROLLBACK", *answer]
    assert _rows(backend, name) == 0


@pytest.mark.parametrize("finish", [_plain, _streamed])
async def test_L5_a_refused_commit_sends_one_start_and_runs_nothing_of_the_answer(
    backend: Backend, mode: Mode, timeline: Timeline, name: str, finish: Finish
) -> None:
    answer = await _call(backend, mode, timeline, name, finish, orphan=True)
    assert [each for each in timeline if each != "ROLLBACK"] == [
        "BEGIN", "INSERT", "COMMIT failed", "start 409", "body last",
    ]  # fmt: skip
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/foreign-key-violation"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert _rows(backend, name) == 0


async def test_L5_nothing_that_the_app_still_sends_after_a_refusal_gets_out(
    backend: Backend, mode: Mode, timeline: Timeline, name: str
) -> None:
    async def insists(send: Send) -> None:
        """Swallows everything, as a framework's error handling might, and sends on."""
        for status in (201, 200):
            with contextlib.suppress(Exception):
                await send({"type": "http.response.start", "status": status, "headers": []})
            with contextlib.suppress(Exception):
                await send({"type": "http.response.body", "body": b"lie"})

    async def write() -> None:
        current_session().add(Part(name=name, item_id=NO_SUCH_ITEM))
        await current_session().flush()

    def write_sync() -> None:
        current_sync_session().add(Part(name=name, item_id=NO_SUCH_ITEM))
        current_sync_session().flush()

    async with Database(backend.database_url) as database:

        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            if mode == "async":
                await write()
            else:
                write_sync()
            await insists(send)

        ours = UnitOfWorkMiddleware(app, database=database, retry=retry_of_this_run())
        answer = await run_asgi(ours, "POST", "/", timeline=timeline)
    assert timeline == ["start 409", "body last"]
    assert b"lie" not in answer.body


async def test_L20_a_request_without_a_session_begins_nothing(
    backend: Backend, mode: Mode, timeline: Timeline
) -> None:
    async def health(_: Request) -> Response:
        return Response()

    def health_sync(_: Request) -> Response:
        return Response()

    endpoint = health if mode == "async" else health_sync
    async with _app(backend, Route("/", endpoint, methods=["GET", "POST"])) as app:
        with watch(timeline):
            for method in ("GET", "POST"):
                await run_asgi(app, method, "/", timeline=timeline)
    assert timeline == ["start 200", "body last"] * 2


@pytest.mark.promise("the timeline")
async def test_a_transaction_begins_with_the_first_sql_and_not_with_the_session(
    backend: Backend, mode: Mode, timeline: Timeline
) -> None:
    async def ask(_: Request) -> Response:
        session = current_session()
        timeline.append("asked")
        await session.execute(text("SELECT 1"))
        await session.scalars(ALL_NAMES)
        return Response()

    def ask_sync(_: Request) -> Response:
        session = current_sync_session()
        timeline.append("asked")
        session.execute(text("SELECT 1"))
        session.scalars(ALL_NAMES)
        return Response()

    endpoint = ask if mode == "async" else ask_sync
    async with _app(backend, Route("/", endpoint, methods=["POST"])) as app:
        with watch(timeline):
            await run_asgi(app, "POST", "/", timeline=timeline)
    assert timeline == ["asked", "BEGIN", "COMMIT", "start 200", "body last"]
