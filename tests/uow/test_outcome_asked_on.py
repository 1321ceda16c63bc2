"""L8: a COMMIT that is under way while somebody resets the statistics, by which a crash is recognised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, make_url

from tests.faults.proxy import PostgresProxy
from tests.support.backends import Backend, Mode
from tests.support.hold import PostgresHold, hold_commits
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.units import elsewhere, in_thread, insert, make_tables, names, request
from uow.outcome import TrueOutcome

pytestmark = pytest.mark.backends("pg18")

RESET = "SELECT pg_stat_reset_shared('bgwriter')"
OTHERS = "SELECT pg_current_xact_id()::text"
TOLD = {True: (500, "unknown"), False: (503, "rolled_back")}


@contextmanager
def questions() -> Iterator[list[str]]:
    """What is asked about the outcome of a COMMIT while the block lasts."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "pg_xact_status" in statement:
            asked.append(statement)

    event.listen(Engine, "after_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(Engine, "after_cursor_execute", note)


@pytest.mark.parametrize("newest", [True, False], ids=["of the newest", "of an older one"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "undone"])
async def test_L8_statistics_that_are_reset_make_no_answer_of_a_commit_under_way(
    backend: Backend, mode: Mode, connect: Connect, *, kept: bool, newest: bool
) -> None:
    """It is asked about until it has ended; then `committed` may be said of another transaction as well.

    The newest transaction of all has a number that no snapshot knows to be given yet.
    """
    make_tables(backend)
    with (
        PostgresProxy(make_url(backend.database_url).port or 5432) as proxy,
        hold_commits(backend, "items") as held,
        questions() as asked,
    ):
        assert isinstance(held, PostgresHold)
        outcome = TrueOutcome(seconds=LIMIT)
        database = connect(proxy.url_of(backend.database_url), outcome=outcome)
        proxy.cut("commit_sent", once=True)
        answer = elsewhere(request(database, mode, insert("once")))
        await held.wait_until_waiting_async()
        await wait_until_async(lambda: bool(asked), "somebody asks")
        if not newest:
            backend.query(OTHERS)
        backend.query(RESET)
        after = len(asked)
        await wait_until_async(lambda: answer.done() or len(asked) > after + 2, "and asks on")
        assert not answer.done()
        if kept:
            held.release()
        else:
            assert await in_thread(held.terminate_waiting) == 1
        recorder = await answer

    assert (recorder.status, recorder.json()["outcome"]) == TOLD[kept]
    assert names(backend) == ["once"] * kept
    backend.wait_until_at_rest()
