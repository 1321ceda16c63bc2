"""Deadlines that PostgreSQL keeps as well, and those that a dead link does not delay."""

from __future__ import annotations

import asyncio
import re
import threading
from contextlib import nullcontext
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from tests.faults.proxy import PostgresProxy
from tests.support.asgi import run_asgi
from tests.support.backends import Backend, Mode
from tests.support.wait import wait_until_async
from tests.uow.conftest import Connect
from tests.uow.test_deadlines import LATE, SOON, is_late
from tests.uow.units import app_of, endpoint, insert, make_tables, names, request, within
from uow import current_session, current_unit

pytestmark = pytest.mark.backends("pg18")


def pid(session: Session) -> int:
    return session.scalar(text("SELECT pg_backend_pid()")) or 0


async def test_and_one_whose_link_is_stalled(backend: Backend, connect: Connect) -> None:
    """The ROLLBACK is not waited for either: the connection is thrown away."""
    make_tables(backend)
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        database = connect(
            proxy.url_of(backend.database_url), settle_timeout=LATE, pool_size=1, max_overflow=0
        )
        await within(database, "async", insert("first"))

        async def stalls(_: Request) -> Response:
            await current_session().run_sync(insert("lost"))
            proxy.stall()
            await asyncio.Event().wait()
            raise AssertionError

        assert is_late(await run_asgi(app_of(stalls, database, deadline=SOON), "POST", "/work"))
        proxy.heal()
        assert (await request(database, "async", insert("next"))).status == 201

    assert names(backend) == ["first", "next"]


@pytest.mark.parametrize("own", [False, True], ids=["in its unit", "in a new_unit()"])
@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
async def test_and_one_that_waits_for_an_answer_on_it(
    backend: Backend, driver: str, own: bool, connect: Connect
) -> None:
    make_tables(backend)
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        url = make_url(proxy.url_of(backend.database_url)).set(drivername=driver)
        database = connect(
            url.render_as_string(hide_password=False), settle_timeout=LATE, pool_size=1, max_overflow=0
        )
        await within(database, "async", insert("first"))

        async def stalls(_: Request) -> Response:
            around = current_unit()  # whose deadline it is
            assert around.options.deadline == SOON
            async with database.new_unit() if own else nullcontext(around) as unit:
                await unit.session.run_sync(insert("lost"))
                proxy.stall()
                await unit.session.execute(text("SELECT 1"))
            raise AssertionError

        began = monotonic()
        assert is_late(await run_asgi(app_of(stalls, database, deadline=SOON), "POST", "/work"))
        assert monotonic() - began < LATE / 10  # psycopg alone would wait for twice five seconds
        proxy.heal()
        assert (await request(database, "async", insert("next"))).status == 201

    assert names(backend) == ["first", "next"]


async def test_the_server_ends_the_statement_of_a_thread_and_its_connection_stays(
    backend: Backend, connect: Connect
) -> None:
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0)
    before = await within(database, "sync", pid)

    def slow(session: Session) -> None:
        insert("lost")(session)
        session.execute(text("SELECT pg_sleep(60)"))

    late = await run_asgi(app_of(endpoint("sync", slow), database, deadline=SOON), "POST", "/work")

    assert (late.status, late.json()["type"]) == (503, "/problems/time-is-up")
    assert await within(database, "sync", pid) == before
    assert names(backend) == []


async def test_one_that_does_not_hear_it_is_cut_off(backend: Backend, connect: Connect) -> None:
    """The link is stalled, so neither the limit nor a cancellation reaches the thread."""
    make_tables(backend)
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        database = connect(proxy.url_of(backend.database_url), pool_size=1, max_overflow=0)
        ended = threading.Event()

        def slow(session: Session) -> None:
            insert("lost")(session)
            proxy.stall()
            try:
                session.execute(text("SELECT 1"))
            finally:
                ended.set()

        app = app_of(endpoint("sync", slow), database, deadline=10 * SOON)  # it shall have begun
        assert is_late(await run_asgi(app, "POST", "/work"))
        await wait_until_async(ended.is_set, "the thread has left the driver, with the link still stalled")
        proxy.heal()
        assert (await request(database, "sync", insert("next"))).status == 201

    assert names(backend) == ["next"]


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
async def test_a_commit_has_the_time_that_it_needs(
    backend: Backend, mode: Mode, driver: str, connect: Connect
) -> None:
    """Stopped while it waits for a synchronous standby, it would be answered as if it were safe there."""
    make_tables(backend)
    backend.execute(
        "CREATE FUNCTION takes_long() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$"
    )
    backend.execute(
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON items DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION takes_long()",
    )
    url = make_url(backend.database_url).set(drivername=driver)
    database = connect(url.render_as_string(hide_password=False))

    assert (await request(database, mode, insert("kept"), deadline=1.0)).status == 201

    assert names(backend) == ["kept"]


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
async def test_the_limits_are_the_shorter_of_two_and_end_with_their_unit(
    backend: Backend, mode: Mode, driver: str, connect: Connect
) -> None:
    make_tables(backend)
    url = make_url(backend.database_url).set(drivername=driver)
    database = connect(url.render_as_string(hide_password=False), pool_size=1, max_overflow=0)

    def limits(session: Session) -> list[str]:
        return [str(session.scalar(text(f"SHOW {name}_timeout"))) for name in ("statement", "lock")]

    def with_its_own(session: Session) -> list[str]:
        session.execute(text("SET LOCAL statement_timeout = '30s'"))
        return limits(session)

    async def asked(work: Any, **options: Any) -> Any:
        answer = await run_asgi(app_of(endpoint(mode, work), database, **options), "POST", "/work")
        return answer.json()

    statement, lock = await asked(limits, deadline=LATE)
    assert re.fullmatch(r"5\d(\d{3}ms|s)", statement)
    assert re.fullmatch(r"5\d(\d{3}ms|s)", lock)
    assert await asked(limits) == ["0", "0"]
    assert (await asked(with_its_own, deadline=LATE))[0] == "30s"
    backend.execute(f'ALTER DATABASE "{url.database}" SET statement_timeout = 30000')
    await database.dispose()  # what is connected already does not know of it
    for _ in range(2):
        assert (await asked(limits, deadline=LATE))[0] == "30s"
    assert (await asked(limits, deadline=1.0))[0] != "30s"
