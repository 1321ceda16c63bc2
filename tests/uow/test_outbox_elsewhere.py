"""What is owed to a destination that was renamed or taken away is told of, once, and never lost."""

from __future__ import annotations

import pytest

from tests.support.backends import Backend
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell_all, until, words
from uow import Database
from uow.outbox import Which, owed_elsewhere

pytestmark = [pytest.mark.anyio, pytest.mark.backends("sqlite", "pg18")]


@pytest.fixture
async def database(backend: Backend, connect: Connect) -> Database:
    """Two events are owed to `one`, one of them was meant for `old`, and one that is dead for `older`."""
    make_outbox_table(backend)
    database = connect(backend)
    outbox_of(database, Received("one"), Received("old"), Received("older"))
    await tell_all(database, ("a", 1), ("b", 2))
    backend.execute("DELETE FROM outbox_events WHERE destination = 'older' AND subject = 'things/1'")
    backend.execute("UPDATE outbox_events SET state = 'dead' WHERE destination = 'older'")
    return connect(backend)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "not here" in each.getMessage()]


async def test_a_relay_says_once_what_it_has_no_destination_for(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    one = Received("one")
    async with relay_of(outbox_of(database, one)):
        await until(lambda: warnings(caplog), "the warning")
        await tell_all(database, *((str(turn), 1) for turn in range(5)))  # each wakes it, or it looks anyway
        await until(lambda: len(one.events) == 7, "the others to be sent")
    assert len(warnings(caplog)) == 1
    assert "nobody sends them: old (2); name each again as it was, or discard" in warnings(caplog)[0]
    assert words(backend, "destination = 'old'") == ["a", "b"]


async def test_where_all_have_their_destination_there_is_nothing_to_say(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    old = Received("old")
    async with relay_of(outbox_of(database, Received("one"), old)):
        await until(lambda: old.words == ["a", "b"], "it is there again, and gets what was owed to it")
        await until(lambda: words(backend, "state = 'pending'") == [], "all to be gone")
    assert warnings(caplog) == []


async def test_it_is_said_as_soon_as_the_database_is_there(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.execute("ALTER TABLE outbox_events RENAME TO away")
    async with relay_of(outbox_of(database, Received("one"))):
        await until(lambda: "outbox one: the database" in caplog.text, "the first look to fail")
        assert warnings(caplog) == []
        backend.execute("ALTER TABLE away RENAME TO outbox_events")
        await until(lambda: warnings(caplog), "the warning")


async def test_they_can_be_counted_by_what_is_to_become_of_them(database: Database) -> None:
    async with database.new_unit(read_only=True) as unit:
        assert await owed_elsewhere(unit.session, ["one"]) == {"old": 2}
        assert await owed_elsewhere(unit.session, ["one"], Which()) == {"old": 2, "older": 1}
        assert await owed_elsewhere(unit.session, [], Which(state="pending")) == {"old": 2, "one": 2}
        assert await owed_elsewhere(unit.session, ["one", "old", "older"], Which()) == {}
