"""L6: what is never run again: it would fail again, may have had an effect, or somebody said so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import HTTPException
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tests.support.asgi import Recorder, run_asgi
from tests.support.backends import Backend, Mode
from tests.support.hold import PostgresHold, hold_commits
from tests.uow.conftest import Connect
from tests.uow.retries import (
    QUICK,
    Flaky,
    contained,
    refused,
)
from tests.uow.units import (
    app_of,
    elsewhere,
    endpoint,
    in_thread,
    insert,
    make_tables,
    names,
    request,
    run,
    within,
)
from uow import Database, current_session, current_unit, new_unit, unit_options

pytestmark = pytest.mark.backends("pg18")


def no_retry(session: Session) -> None:
    current_unit().no_retry()
    session.execute(text(refused("40001")))


def contained_and_reported(session: Session) -> None:
    contained(session)
    raise HTTPException(409)


def let_out_of_a_savepoint(session: Session) -> None:
    with session.begin_nested():
        session.execute(text(refused("40001")))


NOT_AGAIN: dict[str, tuple[Any, int]] = {
    "a unique violation": (insert("attempt-1"), 409),
    "a check": (run("INSERT INTO items (name, stock) VALUES ('minus', -1)"), 422),
    "a syntax error": (run("SELEKT 1"), 500),
    "a statement whose outcome is unknown": (run(refused("40003")), 500),
    "a connection whose transaction may be there": (run(refused("08007")), 500),
    "time that is up": (run(refused("57014")), 503),
    "an error that a savepoint contains": (contained, 201),
    "an error that a savepoint has undone": (let_out_of_a_savepoint, 503),
    "an answer of the app's after it": (contained_and_reported, 409),
    "no_retry()": (no_retry, 503),
}


@pytest.mark.parametrize("case", NOT_AGAIN)
async def test_L6_what_would_fail_again_or_may_have_had_an_effect_is_not_run_again(
    backend: Backend, mode: Mode, database: Database, case: str
) -> None:
    fail, status = NOT_AGAIN[case]
    flaky = Flaky(fail)

    answer = await request(database, mode, flaky, retry=QUICK)

    assert (answer.status, flaky.attempts) == (status, [1])
    assert names(backend) == (["attempt-1"] if status == 201 else [])
    backend.wait_until_at_rest()


async def test_L6_a_request_of_the_clients_fault_is_not_run_again(
    backend: Backend, mode: Mode, database: Database
) -> None:
    def fail(_: Session) -> None:
        raise HTTPException(503, "of the app's own", {"Retry-After": "7"})

    flaky = Flaky(fail)
    answer = await request(database, mode, flaky, retry=QUICK)
    assert (answer.status, answer.headers["retry-after"], flaky.attempts) == (503, "7", [1])


@pytest.mark.parametrize("told", ["by the decorator", "by a rule", "by nobody", "by both, the rule last"])
async def test_L6_the_options_say_whether_a_request_is_run_again(
    backend: Backend, mode: Mode, database: Database, told: str
) -> None:
    flaky = Flaky()
    handle = endpoint(mode, flaky)
    options: dict[str, Any] = {"retry": None if told == "by nobody" else QUICK}
    if "decorator" in told or "both" in told:
        handle = unit_options(retry=False)(handle)
    if "rule" in told:
        options["rules"] = [{"match": "POST /work", "retry": "both" in told}]

    answer = await run_asgi(app_of(handle, database, **options), "POST", "/work")

    expected = (201, [1, 2]) if "both" in told else (503, [1])
    assert (answer.status, flaky.attempts) == expected


async def test_L6_a_pool_that_is_empty_is_not_asked_again(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    """L26: who has waited for a connection makes room; it must not stand in the queue once more."""
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0, pool_timeout=0.05)
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(current_unit().attempt)
        insert("never")(session)

    def holding(session: Session) -> None:
        session.execute(text("SELECT 1"))
        answers.append(ask())

    def ask() -> Recorder:
        return asyncio.run(request(database, mode, work, retry=QUICK))

    answers: list[Recorder] = []
    if mode == "sync":
        await within(database, mode, holding)
    else:
        async with database.new_unit() as unit:
            await unit.session.execute(text("SELECT 1"))
            answers.append(await elsewhere(request(database, mode, work, retry=QUICK)))

    assert [(answer.status, answer.json()["type"]) for answer in answers] == [
        (503, "/problems/database-unavailable")
    ]
    assert attempts == [1]


async def test_L8_a_commit_that_may_have_worked_is_not_run_again(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """The link was lost while COMMIT was on its way: to do it again might be to do it twice."""
    flaky = Flaky(failures=0)
    with hold_commits(backend, "items") as held:
        assert isinstance(held, PostgresHold)
        answer = elsewhere(request(database, mode, flaky, retry=QUICK))
        await held.wait_until_waiting_async()
        assert await in_thread(held.terminate_waiting) == 1
        recorder = await answer

    assert flaky.attempts == [1]
    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/commit-outcome-unknown")
    assert names(backend) == []


@pytest.mark.parametrize("with_unit", [False, True], ids=["alone", "beside the unit of the request"])
async def test_L6_a_failure_of_a_unit_of_the_handlers_own_is_its_own(
    backend: Backend, database: Database, with_unit: bool
) -> None:
    attempts: list[str] = []

    async def handle(_: Request) -> Response:
        attempts.append("attempt")
        if with_unit:
            await current_session().run_sync(insert("outer"))
        async with new_unit() as own:
            await own.session.execute(text(refused("40001")))
        return Response(status_code=201)

    answer = await run_asgi(app_of(handle, database, retry=QUICK), "POST", "/work")

    assert (answer.status, answer.json()["type"]) == (503, "/problems/serialization-failure")
    assert attempts == ["attempt"]
    assert names(backend) == []


async def test_L6_an_answer_that_has_begun_is_not_made_again(backend: Backend, database: Database) -> None:
    """L15: a stream fails in the middle; what is out cannot be taken back."""
    attempts: list[int] = []

    async def rows() -> AsyncIterator[str]:
        attempts.append(current_unit().attempt)
        yield str(await current_session().scalar(text("SELECT 1")))
        yield "more" * 1000
        await current_session().execute(text(refused("40001")))

    async def handle(_: Request) -> Response:
        return StreamingResponse(rows())

    answer = await run_asgi(app_of(handle, database, retry=QUICK), "GET", "/work")

    assert (answer.status, len(answer.starts), answer.complete, attempts) == (200, 1, False, [1])
    assert isinstance(answer.error, SQLAlchemyError)


async def test_who_asks_for_it_where_the_middleware_has_no_way_is_told(
    backend: Backend, mode: Mode, database: Database
) -> None:
    handle = unit_options(retry=True)(endpoint(mode, insert("never")))

    answer = await run_asgi(app_of(handle, database), "POST", "/work")

    assert (answer.status, names(backend)) == (500, [])
    assert "give it retry=Retry()" in str(answer.error)
