"""Which answers are kept with a key, byte for byte, and which never are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)

from tests.support.asgi import AsgiCall
from tests.support.backends import Backend, Mode
from tests.uow.conftest import Connect
from tests.uow.keys import (
    REPLAYED,
    Counted,
    answering,
    both,
    counting,
    keyed,
    make_keys,
    one,
    rows,
    send,
)
from tests.uow.units import Told, add, make_tables, names
from uow import Database, current_session, on_commit, unit_options


@pytest.fixture(autouse=True)
def _keys(backend: Backend) -> None:
    make_keys(backend)


@both
@pytest.mark.parametrize("status", [400, 404, 409, 500, 503])
async def test_an_answer_that_rolls_back_stores_nothing_and_may_be_tried_again(
    backend: Backend, mode: Mode, database: Database, status: int
) -> None:
    """L2."""
    work = Counted(status=status)
    app = keyed(counting(mode, work), database)

    assert (await send(app)).status == status
    assert (rows(backend), names(backend)) == ([], [])
    work.status = 201
    second = await send(app)

    assert (second.status, second.json(), REPLAYED in second.headers) == (201, {"run": 2}, False)
    assert rows(backend) == [("", "k-1", 201)]


@both
async def test_an_exception_stores_nothing(backend: Backend, mode: Mode, database: Database) -> None:
    """L3, L4."""

    def fails(_: Session) -> None:
        if work.runs < 3:
            raise LookupError if work.runs == 1 else ValueError

    work = Counted(work=fails)
    mapped = {ValueError: lambda request, error: PlainTextResponse("no", 418)}
    app = keyed(counting(mode, work), database, handlers=mapped)

    assert isinstance((await send(app)).error, LookupError)
    assert (await send(app)).status == 418
    assert (rows(backend), names(backend)) == ([], [])
    assert (await send(app)).json() == {"run": 3}


@both
async def test_an_error_that_commits_is_an_answer_like_any_other(
    backend: Backend, mode: Mode, database: Database
) -> None:
    work = Counted(status=402)
    app = keyed(counting(mode, work), database, unit={"commit_on": [402, 409, 422]})

    first, again = [await send(app) for _ in range(2)]
    reused = await send(app, body=b"another")

    assert (first.status, again.status, again.body) == (402, 402, first.body)
    assert (again.headers[REPLAYED], reused.status) == ("true", 422)
    assert (work.runs, names(backend)) == (1, ["run-1"])


@one
@pytest.mark.parametrize(
    "response",
    [
        pytest.param(partial(Response, status_code=204), id="204"),
        pytest.param(lambda: Response(b"", 200), id="empty"),
        pytest.param(lambda: Response(bytes(range(256)), 200), id="binary"),
        pytest.param(lambda: RedirectResponse("/items/1", 303), id="303"),
        pytest.param(lambda: Response(b"x" * 1000, 201), id="at-the-limit"),
        pytest.param(lambda: PlainTextResponse("\u20ac", headers={"X-Name": "caf\xe9"}), id="latin-1"),
    ],
)
async def test_every_kind_of_answer_comes_again_as_it_was(
    backend: Backend, database: Database, response: Callable[[], Response]
) -> None:
    app = keyed(answering(response), database, body_limit=1000)

    first, again = [await send(app) for _ in range(2)]

    assert first.error is None
    assert again.body == first.body == response().body
    assert again.starts[0]["headers"] == [*first.starts[0]["headers"], (b"idempotency-replayed", b"true")]
    assert again.complete
    assert names(backend) == ["row-0"]


@one
@pytest.mark.parametrize(
    ("kept", "told"),
    [(None, {"content-length", "etag", "location"}), (["Location"], {"location"})],
)
async def test_cookies_are_never_kept_and_the_rest_is_as_configured(
    database: Database, kept: list[str] | None, told: set[str]
) -> None:
    fields = {"ETag": '"1"', "Location": "/items/1", "Set-Cookie": "session=secret", "Date": "now"}
    app = keyed(answering(lambda: Response(b"made", 201, fields)), database, headers=kept)

    first, again = [await send(app) for _ in range(2)]

    assert {"set-cookie", "date"} <= first.headers.keys()
    assert again.headers.keys() - {REPLAYED} == told
    assert again.body == b"made"


@one
async def test_parts_of_a_body_of_known_length_are_one_answer(backend: Backend, database: Database) -> None:
    """As a BaseHTTPMiddleware inside sends them."""

    async def through(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app = keyed(answering(lambda: JSONResponse({"made": 1}, 201)), database)
    inside: Any = BaseHTTPMiddleware
    app.user_middleware.append(Middleware(inside, dispatch=through))

    first, again = [await send(app) for _ in range(2)]

    assert (first.status, first.json(), again.body) == (201, {"made": 1}, first.body)
    assert names(backend) == ["row-0"]


OFFERED: dict[str, Any] = {
    "http.response.pathsend": {},
    "http.response.zerocopysend": {},
    "http.response.trailers": {},
    "http.response.early_hint": {},
}


@one
@pytest.mark.parametrize("size", [0, 10, 200_000])
async def test_a_file_is_kept_whatever_ways_to_send_one_the_server_has(
    backend: Backend, database: Database, tmp_path: Path, size: int
) -> None:
    """A server that is told of a path reads the file by itself, and what it sends is seen by nobody here."""
    file = tmp_path / "label.bin"
    file.write_bytes(bytes(range(10)) * (size // 10))
    app = keyed(answering(lambda: FileResponse(file)), database)

    first = await send(app, scope={"extensions": OFFERED})
    file.unlink()
    again = await send(app, scope={"extensions": OFFERED})

    assert (first.error, first.status) == (None, 200)
    assert {message["type"] for message in first.messages} == {"http.response.start", "http.response.body"}
    assert len(first.body) == size
    assert (again.body, again.headers[REPLAYED]) == (first.body, "true")
    assert names(backend) == ["row-0"]


@one
async def test_ways_to_send_are_hidden_while_a_request_with_a_key_runs_and_only_then(
    backend: Backend, database: Database
) -> None:
    seen: list[set[str]] = []

    async def handle(request: Request) -> Response:
        await add(f"row-{len(seen)}")
        seen.append({*request.scope["extensions"]})
        return Response(b"", 200 if len(seen) < 3 else 400)

    app = keyed(handle, database)
    answers = [await send(app, key, scope={"extensions": OFFERED}) for key in ("a", None, "b")]

    assert seen == [{"http.response.early_hint"}, {*OFFERED}, {"http.response.early_hint"}]
    for answer in answers:
        assert answer.scope["extensions"] is OFFERED
        assert answer.scope["route"].path == "/work"  # as without a key: observers outside read it
    assert len(OFFERED) == 4


@one
async def test_what_stands_outside_does_its_part_each_time(backend: Backend, database: Database) -> None:
    """A compression of the answer, of which the stored one knows nothing."""
    app = keyed(answering(lambda: PlainTextResponse("x" * 2000)), database)
    app.add_middleware(GZipMiddleware)

    first = await send(app, headers={"Accept-Encoding": "gzip"})
    plain = await send(app)

    assert (first.headers["content-encoding"], len(plain.body)) == ("gzip", 2000)
    assert "content-encoding" not in plain.headers
    assert names(backend) == ["row-0"]


@both
async def test_callbacks_and_background_tasks_are_of_the_first_alone(
    backend: Backend, connect: Connect
) -> None:
    done: list[str] = []

    async def handle(_: Request) -> Response:
        await add("row")
        on_commit(lambda: done.append("committed"))
        return Response(status_code=201, background=BackgroundTask(done.append, "background"))

    make_tables(backend)
    database = connect(backend, observer=(told := Told()))
    app = keyed(handle, database)
    for _ in range(3):
        assert (await send(app)).status == 201

    assert done == ["committed", "background"]
    assert [outcome for _, outcome in told.outcomes] == ["committed", "rolled_back", "rolled_back"]


@both
async def test_a_request_that_only_reads_is_passed_on(backend: Backend, database: Database) -> None:
    @unit_options(read_only=True)
    async def search(_: Request) -> Response:
        found = await current_session().scalar(text("SELECT count(*) FROM items"))
        return JSONResponse(found)

    app = keyed(search, database)
    for method in ("POST", "GET"):
        for _ in range(2):
            answer = await send(app, method=method)
            assert (answer.status, answer.json(), REPLAYED in answer.headers) == (200, 0, False)
    assert rows(backend) == []


@both
async def test_a_handler_that_asks_for_no_session_is_run_once_as_well(
    backend: Backend, database: Database
) -> None:
    runs: list[int] = []

    async def handle(_: Request) -> Response:
        runs.append(1)
        return JSONResponse(len(runs))

    app = keyed(handle, database)
    assert [(await send(app)).json() for _ in range(3)] == [1, 1, 1]
    assert rows(backend) == [("", "k-1", 200)]


@both
async def test_a_client_that_leaves_gets_its_answer_the_next_time(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L14: its COMMIT is acknowledged, and the answer goes nowhere."""
    app = keyed(counting(mode, Counted()), database)
    call = AsgiCall(app, "POST", "/work", headers={"Idempotency-Key": "k-1"}, fail_send_at=0)
    assert isinstance((await call.run()).error, OSError)

    again = await send(app)

    assert (again.status, again.json(), again.headers[REPLAYED]) == (201, {"run": 1}, "true")
    assert names(backend) == ["run-1"]


@one
async def test_a_client_that_leaves_with_half_a_request_has_asked_for_nothing(
    backend: Backend, database: Database
) -> None:
    work = Counted()
    call = AsgiCall(
        keyed(counting("async", work), database), "POST", "/work", headers={"Idempotency-Key": "k"}
    )
    call._chunks.clear()
    call.disconnect()

    recorder = await call.run()

    assert (recorder.messages, recorder.error, work.runs) == ([], None, 0)


@one
async def test_the_app_reads_the_body_that_was_read_before_it(backend: Backend, database: Database) -> None:
    async def handle(request: Request) -> Response:
        await add((await request.body()).decode())
        return Response(await request.body(), 201)

    app = keyed(handle, database, request_limit=6)
    assert (await send(app, body=[b"ab", b"", b"cd"])).body == b"abcd"
    assert (await send(app, body=[b"abcd"])).body == b"abcd"
    too_large = await send(app, "k-2", body=[b"abcd", b"efg"])
    assert (too_large.status, too_large.json()["type"]) == (413, "/problems/content-too-large")
    assert names(backend) == ["abcd"]


@one
async def test_a_body_that_comes_byte_by_byte_costs_no_more_than_itself(
    backend: Backend, database: Database
) -> None:
    size = 50_000
    app = keyed(counting("async", Counted()), database, request_limit=size)
    await send(app, "warm")
    chunks = [b"%c" % (number % 256) for number in range(size)]
    call = AsgiCall(app, "POST", "/work", body=chunks, headers={"Idempotency-Key": "k-1"})

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    answer = await call.run()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()

    assert answer.status == 201
    assert peak < 20 * size + 1_000_000
    assert (await send(app, "k-1", body=b"".join(chunks))).headers[REPLAYED] == "true"
