"""Who may settle a unit, and what is learnt of those who have done it anyway (L11)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.support.backends import Backend, Mode
from tests.uow.units import (
    insert,
    names,
    request,
)
from uow import Database

SETTLING: dict[str, Callable[[Session], Any]] = {
    "commit": lambda session: session.commit(),
    "begin": lambda session: session.begin(),
    "prepare": lambda session: session.prepare(),
    "reset": lambda session: session.reset(),
    "invalidate": lambda session: session.invalidate(),
    "commit of the transaction": lambda session: transaction_of(session).commit(),
    "commit of the connection": lambda session: session.connection().commit(),
}


def transaction_of(session: Session) -> Any:
    return session.get_transaction()


@pytest.mark.parametrize("how", SETTLING)
async def test_a_handler_that_settles_is_refused_with_what_to_write(
    backend: Backend, mode: Mode, database: Database, how: str
) -> None:
    """L11: at the call; nothing of it is kept, and the connection goes back clean."""

    def work(session: Session) -> None:
        insert("never")(session)
        SETTLING[how](session)

    recorder = await request(database, mode, work)

    assert recorder.json()["type"] == "/problems/settle-refused"
    assert "set_rollback_only() to keep nothing" in recorder.json()["detail"]
    assert (await request(database, mode, insert("next"))).status == 201
    assert names(backend) == ["next"]
    backend.wait_until_at_rest()


@pytest.mark.parametrize("closing", [False, True])
async def test_a_connection_that_tried_to_commit_and_was_closed_goes_back_clean(
    backend: Backend, mode: Mode, database: Database, closing: bool
) -> None:
    """L11: the next unit must not commit what this one's client was told had failed."""

    def work(session: Session) -> None:
        connection = session.connection()
        try:
            insert("never")(session)
            connection.commit()
        finally:
            if closing:
                connection.close()

    assert (await request(database, mode, work)).status == 500
    assert (await request(database, mode, insert("next"))).status == 201
    assert names(backend) == ["next"]


@pytest.mark.parametrize("sent", ["COMMIT", "ROLLBACK", "END"])
@pytest.mark.parametrize("status", [201, 404])
async def test_what_ends_the_transaction_as_text_makes_the_outcome_unknown(
    backend: Backend, mode: Mode, database: Database, sent: str, status: int
) -> None:
    """L11: found at settle, whatever the answer was."""

    def work(session: Session) -> None:
        insert("maybe")(session)
        session.execute(text(sent))

    recorder = await request(database, mode, work, status=status)

    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/commit-outcome-unknown")
    assert recorder.json()["outcome"] == "unknown"
    assert (await request(database, mode, insert("next"))).status == 201


async def test_what_ended_the_transaction_is_found_although_the_app_raised(
    backend: Backend, mode: Mode, database: Database
) -> None:
    def work(session: Session) -> None:
        insert("maybe")(session)
        session.execute(text("COMMIT"))
        raise LookupError("of the handler's own")

    recorder = await request(database, mode, work)

    assert recorder.json()["type"] == "/problems/commit-outcome-unknown"


@pytest.mark.parametrize("status", [201, 404])
async def test_a_commit_past_sqlalchemy_is_found(
    backend: Backend, mode: Mode, database: Database, status: int
) -> None:
    """L11: on a cursor of the driver's own."""

    def work(session: Session) -> None:
        insert("maybe")(session)
        cursor = session.connection().connection.cursor()
        cursor.execute("COMMIT")
        cursor.close()

    recorder = await request(database, mode, work, status=status)

    assert recorder.json()["type"] == "/problems/commit-outcome-unknown"
