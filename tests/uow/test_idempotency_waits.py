"""Requests with one key at one time: who waits, for how long, and what becomes of each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.backends import Backend, Mode
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.keys import (
    IN_USE,
    REPLAYED,
    Counted,
    Held,
    both,
    counting,
    keyed,
    make_keys,
    problem,
    rows,
    send,
)
from tests.uow.retries import Flaky
from tests.uow.units import make_tables, names
from uow import Database, current_session
from uow.idempotency import IdempotencyMiddleware
from uow.retry import Retry

postgres = pytest.mark.backends("pg18", "pgsystem")


@pytest.fixture(autouse=True)
def _keys(backend: Backend) -> None:
    make_keys(backend)


@both
async def test_a_repeat_in_the_same_process_waits_without_a_connection(
    backend: Backend, connect: Connect
) -> None:
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0, max_waiting=1)
    held = Held()
    app = keyed(held.endpoint, database)
    first = asyncio.ensure_future(send(app))
    await held.entered.acquire()

    repeats = [asyncio.ensure_future(send(app)) for _ in range(20)]
    await asyncio.sleep(0)
    assert not database.waiting
    held.go.release()

    answers = [await each for each in (first, *repeats)]
    assert {(answer.status, answer.body) for answer in answers} == {(201, b'{"run":1}')}
    assert sum(REPLAYED in answer.headers for answer in answers) == 20
    assert held.runs == 1


@both
@pytest.mark.parametrize("wait", [0.0, 0.2])
async def test_a_repeat_that_has_waited_long_enough_is_told_to_come_again(
    backend: Backend, database: Database, wait: float
) -> None:
    held = Held()
    app = keyed(held.endpoint, database, wait=wait)
    first = asyncio.ensure_future(send(app))
    await held.entered.acquire()

    repeat = await send(app)

    assert problem(repeat) == IN_USE
    assert int(repeat.headers["retry-after"]) > 0
    held.go.release()
    assert (await first).status == 201
    assert (await send(app)).headers[REPLAYED] == "true"


@both
async def test_when_the_first_fails_the_next_one_is_the_first(backend: Backend, database: Database) -> None:
    held = Held(500, 503, 201)
    app = keyed(held.endpoint, database)
    requests = [asyncio.ensure_future(send(app)) for _ in range(5)]
    for _ in range(3):
        await held.entered.acquire()
        held.go.release()

    answers = [await each for each in requests]

    assert [answer.status for answer in answers] == [500, 503, 201, 201, 201]
    assert [REPLAYED in answer.headers for answer in answers] == [False, False, False, True, True]
    assert (held.runs, names(backend)) == (3, ["run-3"])


@both
async def test_when_the_client_of_the_first_leaves_the_next_one_is_the_first(
    backend: Backend, database: Database
) -> None:
    """L12."""
    held = Held()
    app = keyed(held.endpoint, database)
    first = asyncio.ensure_future(send(app))
    await held.entered.acquire()
    second = asyncio.ensure_future(send(app))
    await asyncio.sleep(0)

    first.cancel()
    await held.entered.acquire()
    held.go.release()

    assert (await second).json() == {"run": 2}
    assert names(backend) == ["run-2"]
    with pytest.raises(asyncio.CancelledError):
        await first


@both
async def test_a_repeat_that_is_cancelled_while_it_waits_leaves_nothing(
    backend: Backend, database: Database
) -> None:
    held = Held()
    app = keyed(held.endpoint, database)
    first = asyncio.ensure_future(send(app))
    await held.entered.acquire()
    repeats = [asyncio.ensure_future(send(app)) for _ in range(3)]
    await asyncio.sleep(0)
    repeats[1].cancel()
    held.go.release()

    assert (await first).status == 201
    assert [(await repeats[n]).headers[REPLAYED] for n in (0, 2)] == ["true", "true"]
    with pytest.raises(asyncio.CancelledError):
        await repeats[1]
    backend.wait_until_at_rest()


@both
async def test_other_keys_and_other_people_do_not_wait(backend: Backend, database: Database) -> None:
    if backend.dialect == "sqlite":
        pytest.skip("on SQLite one writer is at work at a time, whatever its key")
    held = Held()
    app = keyed(held.endpoint, database, principal=lambda scope: scope["state"]["principal"])
    first = asyncio.ensure_future(send(app, state={"principal": "ann"}))
    others = [
        asyncio.ensure_future(send(app, key, state={"principal": who}))
        for who, key in (("bob", "k-1"), ("ann", "k-2"))
    ]
    for _ in range(3):
        await held.entered.acquire()
    for _ in range(3):
        held.go.release()
    assert {(await each).status for each in (first, *others)} == {201}
    assert [row[:2] for row in rows(backend)] == [("ann", "k-1"), ("ann", "k-2"), ("bob", "k-1")]


@both
async def test_nobody_gets_the_answer_of_somebody_else(backend: Backend, database: Database) -> None:
    people = ["ann", "bob", "", "digest:" + "0" * 64, "a" * 255, "a" * 256, "\u00e4nn", "a\nb", "\ud800"]
    work = Counted()
    app = keyed(counting("async", work), database, principal=lambda scope: scope["state"]["principal"])

    first = [await send(app, state={"principal": each}) for each in people]
    again = [await send(app, state={"principal": each}) for each in people]

    assert [answer.json()["run"] for answer in first] == [*range(1, len(people) + 1)]
    assert [answer.body for answer in again] == [answer.body for answer in first]
    assert work.runs == len(rows(backend)) == len(people)


class Elsewhere:
    """Another process: a second database object on the same database."""

    def __init__(self, connect: Connect, backend: Backend, held: Held, **options: Any) -> None:
        self.app = keyed(held.endpoint, connect(backend), **options)


@postgres
async def test_a_repeat_in_another_process_waits_in_the_database(
    backend: Backend, connect: Connect, database: Database
) -> None:
    held = Held()
    first = asyncio.ensure_future(send(keyed(held.endpoint, database)))
    await held.entered.acquire()
    second = asyncio.ensure_future(send(Elsewhere(connect, backend, held).app))
    await wait_until_async(lambda: blocked(backend) == 1, "the second one waits for the row")
    held.go.release()

    assert ((await first).body, (await second).body) == (b'{"run":1}', b'{"run":1}')
    assert (held.runs, names(backend)) == (1, ["run-1"])


@postgres
async def test_a_repeat_in_another_process_takes_over_when_the_first_fails(
    backend: Backend, connect: Connect, database: Database
) -> None:
    held = Held(500, 201)
    first = asyncio.ensure_future(send(keyed(held.endpoint, database)))
    await held.entered.acquire()
    second = asyncio.ensure_future(send(Elsewhere(connect, backend, held).app))
    await wait_until_async(lambda: blocked(backend) == 1, "the second one waits for the row")
    held.go.release()
    await held.entered.acquire()
    held.go.release()

    assert ((await first).status, (await second).json()) == (500, {"run": 2})
    assert names(backend) == ["run-2"]


@postgres
@pytest.mark.parametrize("retry", [None, Retry(first_pause=0)])
@pytest.mark.parametrize("commit_on", [(), (409,)])
async def test_a_repeat_in_another_process_waits_for_so_long_and_no_longer(
    backend: Backend,
    mode: Mode,
    connect: Connect,
    database: Database,
    retry: Retry | None,
    commit_on: tuple[int, ...],
) -> None:
    held = Held()
    first = asyncio.ensure_future(send(keyed(held.endpoint, database)))
    await held.entered.acquire()
    work = Counted()
    unit = {"retry": retry, "commit_on": commit_on}
    second = await send(keyed(counting(mode, work), connect(backend), wait=0.1, unit=unit))

    assert (problem(second), work.runs) == (IN_USE, 0)
    assert int(second.headers["retry-after"]) > 0
    held.go.release()
    assert (await first).status == 201


@both
async def test_a_deadline_that_is_shorter_than_the_wait_is_kept(
    backend: Backend, connect: Connect, database: Database
) -> None:
    held = Held()
    first = asyncio.ensure_future(send(keyed(held.endpoint, database)))
    await held.entered.acquire()
    options = {"wait": LIMIT, "unit": {"deadline": 5.0}}
    elsewhere = Elsewhere(connect, backend, held, **options).app

    answers = await asyncio.gather(send(elsewhere), send(elsewhere))

    assert [problem(answer) for answer in answers] == [IN_USE, IN_USE]
    held.go.release()
    assert (await first).status == 201


@postgres
async def test_the_bound_of_the_wait_is_not_that_of_the_handler(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    make_tables(backend)
    found: list[str] = []

    def work(session: Session) -> None:
        found.append(session.execute(text("SHOW lock_timeout")).scalar_one())

    work_ = Counted(work=work)
    for key, bound in (("k-1", "0"), ("k-2", "77s")):
        backend.execute(f"ALTER DATABASE {connect(backend).url.database} SET lock_timeout = '{bound}'")
        assert (await send(keyed(counting(mode, work_), connect(backend)), key)).status == 201
    assert found == ["0", "77s"]


@both
async def test_an_attempt_that_is_run_again_has_its_key_again(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L6."""
    if backend.dialect == "sqlite":
        pytest.skip("nothing that could be run again comes after BEGIN IMMEDIATE")
    flaky = Flaky(failures=2)

    async def handle(_: Request) -> Response:
        return JSONResponse(await current_session().run_sync(flaky), 201)

    app = keyed(handle, database, unit={"retry": Retry(first_pause=0)})

    answers = await asyncio.gather(*(send(app) for _ in range(4)))

    assert {answer.status for answer in answers} == {201}
    assert len({answer.body for answer in answers}) == 1
    assert (len(flaky.attempts), len(flaky.done), len(names(backend))) == (3, 1, 1)


@postgres
@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_at_every_isolation_level_it_is_done_once(
    backend: Backend, mode: Mode, connect: Connect, isolation: str
) -> None:
    make_tables(backend)
    unit = {"retry": Retry(first_pause=0, attempts=50), "rules": [{"match": "* *", "isolation": isolation}]}
    work = Counted()
    apps = [keyed(counting(mode, work), connect(backend), unit=unit) for _ in range(2)]

    answers = await asyncio.gather(*(send(apps[n % 2], f"k-{n // 6}") for n in range(24)))

    assert {answer.status for answer in answers} == {201}
    for key in range(4):
        assert len({answer.body for answer in answers[6 * key : 6 * key + 6]}) == 1
    assert len(names(backend)) == 4


@pytest.mark.backends("pg18")
async def test_an_inner_key_that_is_in_use_is_no_answer_to_the_outer_one(
    backend: Backend, database: Database
) -> None:
    """Though the route commits on 409: nothing was done, and the next time it may be."""
    held = Held()
    app = keyed(held.endpoint, database, wait=0.1, unit={"commit_on": (409,)})
    inner = Middleware(IdempotencyMiddleware, principal=None, header="X-Key", wait=0.1)
    app.user_middleware.append(inner)
    first = asyncio.ensure_future(send(app, None, headers={"X-Key": "b"}))
    await held.entered.acquire()

    assert problem(await send(app, "a", headers={"X-Key": "b"})) == IN_USE
    held.go.release()
    assert (await first).status == 201
    again = await send(app, "a", headers={"X-Key": "b"})
    assert (again.status, again.json(), held.runs) == (201, {"run": 1}, 1)


def blocked(backend: Backend) -> int:
    waits = "wait_event_type = 'Lock' AND datname = current_database()"
    return int(backend.query(f"SELECT count(*) FROM pg_stat_activity WHERE {waits}")[0][0])
