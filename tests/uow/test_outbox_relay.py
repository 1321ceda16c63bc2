"""The relay: at least once, each subject in its order, whatever fails and whoever is killed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from random import Random

import pytest

from tests.support.backends import Backend
from tests.support.wait import LIMIT
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell, tell_all, until, words
from uow import Database
from uow.outbox import Backoff, CloudEvent, TryLater, Which, discard, owed, retry

pytestmark = [pytest.mark.anyio, pytest.mark.backends("sqlite", "pg18")]


@pytest.fixture
async def database(backend: Backend, connect: Connect) -> Database:
    make_outbox_table(backend)
    return connect(backend)


class Refusing:
    """Refuses what it is told to refuse, so often."""

    def __init__(self, **refused: int) -> None:
        self.refused = Counter(refused)
        self.asked: list[str] = []

    def __call__(self, event: CloudEvent) -> None:
        word = json.loads(event.data)["word"]
        self.asked.append(word)
        if self.refused[word] > 0:
            self.refused[word] -= 1
            raise OSError(f"no {word}")


@pytest.mark.backends("sqlite", "pg18", "pgsystem")
async def test_what_was_published_arrives_with_its_attributes_and_is_gone(
    database: Database, backend: Backend
) -> None:
    received = Received()
    outbox = outbox_of(database, received)
    async with relay_of(outbox):
        await tell_all(database, ("a", 1), ("b", 2))
        await until(lambda: len(received.events) == 2, "both to arrive")
        await until(lambda: words(backend) == [], "the rows to go")
    first = next(each for each in received.events if each.subject == "things/1")
    assert first.attributes == {
        "specversion": "1.0",
        "id": first.id,
        "source": "/tests",
        "type": "thing.told",
        "subject": "things/1",
        "time": first.time,
        "datacontenttype": "application/json",
    }
    assert json.loads(first.data) == {"thing": 1, "word": "a"}
    assert len({each.id for each in received.events}) == 2
    assert received.closed


async def test_a_subject_waits_for_its_first_event_and_no_other_does(database: Database) -> None:
    refusing = Refusing(a1=3)
    received = Received(answer=refusing)
    outbox = outbox_of(database, received)
    await tell_all(database, ("a1", 1), ("a2", 1), ("b1", 2), ("a3", 1))
    async with relay_of(outbox):
        await until(lambda: len(received.events) == 4, "all to arrive")
    assert [word for word in received.words if word.startswith("a")] == ["a1", "a2", "a3"]
    assert refusing.asked.count("a1") == 4
    assert refusing.asked.index("a2") > 3
    assert received.words.index("b1") < received.words.index("a1")


async def test_destinations_do_not_wait_for_each_other(database: Database, backend: Backend) -> None:
    away, there = Received("away", answer=Refusing(a=10**6)), Received("there")
    outbox = outbox_of(database, away, there)
    await tell_all(database, ("a", 1), ("b", 1))
    async with relay_of(outbox):
        await until(lambda: there.words == ["a", "b"], "one of them to have all")
        await until(lambda: words(backend, "destination = 'there'") == [], "its rows to go")
    assert away.events == []
    assert words(backend, "destination = 'away'") == ["a", "b"]


async def test_the_last_attempt_leaves_a_dead_event_and_the_next_one_goes_on(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refusing(a=3)
    received = Received(answer=refusing)
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1), ("b", 1))
    async with relay_of(outbox, max_attempts=3):
        await until(lambda: received.words == ["b"], "the next one to arrive")
        await until(lambda: words(backend, "state = 'pending'") == [], "it to be written down")
    assert refusing.asked == ["a", "a", "a", "b"]
    assert words(backend, "state = 'dead'") == ["a"]
    assert any("is dead, attempt 3: OSError: no a" in each.getMessage() for each in caplog.records)
    async with database.new_unit(read_only=True) as unit:
        (dead,) = await owed(unit.session, Which(state="dead"), most=10)
    assert (dead.attempts, dead.error, dead.type, dead.subject) == (
        3,
        "OSError: no a",
        "thing.told",
        "things/1",
    )
    async with database.new_unit() as unit:
        assert await retry(unit.session, Which(numbers=[dead.number])) == 1
    async with relay_of(outbox):
        await until(lambda: received.words == ["b", "a"], "it to arrive after all")
    assert {each.id for each in received.events} >= {dead.id}


async def test_what_is_discarded_is_never_sent(database: Database, backend: Backend) -> None:
    received = Received()
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1), ("b", 1), ("c", 2))
    async with database.new_unit() as unit:
        rows = await owed(unit.session, Which(destination="received"), most=2)
        assert [row.subject for row in rows] == ["things/1"] * 2
        assert await owed(unit.session, Which(), most=9, after=rows[1].number) != []
        assert await discard(unit.session, Which(numbers=[rows[0].number])) == 1
    async with relay_of(outbox):
        await until(lambda: sorted(received.words) == ["b", "c"], "the others to arrive")
    assert words(backend) == []


async def test_what_a_killed_relay_had_claimed_another_one_sends_when_its_lease_is_over(
    database: Database, backend: Backend
) -> None:
    stuck = asyncio.Event()
    first = Received(answer=lambda _: stuck.wait())
    outbox = outbox_of(database, first)
    await tell_all(database, ("a", 1), ("b", 1))
    killed = asyncio.create_task(relay_of(outbox).run())
    await until(lambda: backend.query("SELECT 1 FROM outbox_events WHERE token IS NOT NULL"), "the claim")
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    assert words(backend) == ["a", "b"]
    first.answer = None
    async with relay_of(outbox):
        await asyncio.sleep(0.2)  # several looks: while the lease lasts, it is nobody else's
        assert first.events == []
        backend.execute("UPDATE outbox_events SET due = 1 WHERE token IS NOT NULL")
        await until(lambda: first.words == ["a", "b"], "another one to take over")


async def test_who_comes_back_after_its_lease_is_over_spoils_nothing(
    database: Database, backend: Backend
) -> None:
    """It was only asleep: its failure does not count any more, and its success does."""
    let_go = asyncio.Event()
    sends = 0

    async def slow(event: CloudEvent) -> None:
        nonlocal sends
        sends += 1
        if sends == 1:
            await let_go.wait()
            raise OSError("too late")

    received = Received(answer=slow)
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1))
    async with relay_of(outbox):
        await until(lambda: sends == 1, "the first to send")
        backend.execute("UPDATE outbox_events SET due = 1")
        async with relay_of(outbox):
            await until(lambda: received.words == ["a"], "the second to send")
            await until(lambda: words(backend) == [], "the row to go")
        await tell_all(database, ("b", 1))
        let_go.set()
        await until(lambda: received.words == ["a", "b"], "the next one")
    assert words(backend) == []


async def test_several_relays_share_the_work_and_keep_the_order(database: Database, backend: Backend) -> None:
    random = Random(5)

    async def unsteady(event: CloudEvent) -> None:
        await asyncio.sleep(random.random() / 200)
        if random.random() < 0.1:
            raise OSError("a tenth of the time")

    received = Received(answer=unsteady)
    outbox = outbox_of(database, received)

    async def writer(number: int) -> None:
        for turn in range(10):
            async with database.new_unit():
                tell(f"{number}-{turn}", number % 3)

    async with relay_of(outbox), relay_of(outbox, concurrency=2), relay_of(outbox):
        await asyncio.gather(*map(writer, range(6)))
        await until(lambda: words(backend) == [], "all to be sent")
    firsts = list(dict.fromkeys(received.words))
    assert len(firsts) == 60
    assert len({each.id for each in received.events}) == 60
    for number in range(6):
        mine = [word for word in firsts if word.startswith(f"{number}-")]
        assert mine == [f"{number}-{turn}" for turn in range(10)]


async def test_no_more_are_under_way_than_was_said(database: Database) -> None:
    under_way = most = 0

    async def counted(event: CloudEvent) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1

    received = Received(answer=counted)
    outbox = outbox_of(database, received)
    async with database.new_unit():
        for thing in range(20):
            tell(str(thing), thing)
    async with relay_of(outbox, concurrency=4):
        await until(lambda: len(received.events) == 20, "all to arrive")
    assert most == 4


async def test_stopping_finishes_what_is_under_way_and_begins_nothing(
    database: Database, backend: Backend
) -> None:
    go_on = asyncio.Event()
    received = Received(answer=lambda _: go_on.wait())
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1), ("b", 1))
    relay = relay_of(outbox)
    running = asyncio.create_task(relay.run())
    await until(lambda: backend.query("SELECT 1 FROM outbox_events WHERE token IS NOT NULL"), "the claim")
    relay.stop()
    await asyncio.sleep(0)
    assert relay.is_stopping
    assert not running.done()
    go_on.set()
    await asyncio.wait_for(running, LIMIT)
    assert received.words == ["a"]
    assert words(backend) == ["b"]


async def test_what_takes_too_long_has_failed(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def stalls_once(event: CloudEvent) -> None:
        calls.append(event.id)
        if len(calls) == 1:
            await asyncio.Event().wait()

    received = Received(answer=stalls_once)
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1))
    async with relay_of(outbox, timeout=0.2):
        await until(lambda: received.words == ["a"], "the second attempt")
    assert len(calls) == 2
    assert "attempt 1 failed: TimeoutError: not taken within 0.2 s" in caplog.text


async def test_a_destination_that_cancels_itself_is_tried_again_when_the_lease_is_over(
    database: Database, backend: Backend
) -> None:
    calls: list[str] = []

    def cancelled(event: CloudEvent) -> None:
        calls.append(event.id)
        if len(calls) == 1:
            raise asyncio.CancelledError

    received = Received(answer=cancelled)
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1))
    async with relay_of(outbox):
        await until(lambda: calls, "the first attempt")
        await asyncio.sleep(0.1)
        backend.execute("UPDATE outbox_events SET due = 1")
        await until(lambda: received.words == ["a"], "the second attempt")


async def test_the_destination_says_when_to_come_back(database: Database, backend: Backend) -> None:
    def busy(event: CloudEvent) -> None:
        raise TryLater("busy", 3600)

    received = Received(answer=busy)
    outbox = outbox_of(database, received)
    await tell_all(database, ("a", 1), ("b", 2))
    async with relay_of(outbox, concurrency=1):
        await until(
            lambda: backend.query("SELECT 1 FROM outbox_events WHERE error LIKE 'TryLater%'"),
            "the answer to be written down",
        )
        await asyncio.sleep(0.2)
    rows = backend.query("SELECT attempts, due > 3000 FROM outbox_events ORDER BY attempts")
    assert rows[0][0] == 0, "nothing else was sent there meanwhile"
    assert rows[1] == (1, True)


async def test_a_destination_that_is_away_is_asked_with_one_event_at_a_time(database: Database) -> None:
    refusing = Refusing(**{str(thing): 10**6 for thing in range(20)})
    received = Received(answer=refusing)
    outbox = outbox_of(database, received)
    async with database.new_unit():
        for thing in range(20):
            tell(str(thing), thing)
    async with relay_of(outbox, concurrency=1, backoff=Backoff(first=0.2, longest=0.2, random=Random(1))):
        await until(lambda: len(refusing.asked) >= 5, "the first failures")
        await asyncio.sleep(0.05)
        assert len(refusing.asked) == 5
        refusing.refused.clear()
        await until(lambda: len(received.events) == 20, "all to arrive once it is back")


async def test_the_relay_outlives_its_database(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    received = Received()
    outbox = outbox_of(database, received)
    backend.execute("ALTER TABLE outbox_events RENAME TO away")
    async with relay_of(outbox):
        await until(lambda: caplog.records, "it to say so")
        backend.execute("ALTER TABLE away RENAME TO outbox_events")
        await tell_all(database, ("a", 1))
        await until(lambda: received.words == ["a"], "it to go on")


async def test_a_relay_that_cannot_write_down_what_it_has_sent_still_stops(
    database: Database, backend: Backend
) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(event: CloudEvent) -> None:
        arrived.set()
        await go_on.wait()

    outbox = outbox_of(database, Received(answer=slow))
    await tell_all(database, ("a", 1))
    relay = relay_of(outbox)
    running = asyncio.create_task(relay.run())
    await asyncio.wait_for(arrived.wait(), LIMIT)
    backend.execute("ALTER TABLE outbox_events RENAME TO away")
    relay.stop()
    go_on.set()
    await asyncio.wait_for(running, LIMIT)
    assert backend.count("away") == 1, "it is sent once more, by whoever comes next"


async def test_lanes_take_turns_where_there_are_more_than_can_be_sent(database: Database) -> None:
    """One that has always something to send does not keep the others waiting."""
    received = Received()
    outbox = outbox_of(database, received)
    async with database.new_unit():
        for turn in range(10):
            for thing in range(5):
                tell(f"{thing}-{turn}", thing)
    async with relay_of(outbox, concurrency=2):
        await until(lambda: len(received.events) == 50, "all to arrive")
    half = Counter(word.partition("-")[0] for word in received.words[:25])
    assert min(half.values()) >= 3


def test_a_back_off_doubles_up_to_its_longest_and_is_never_twice_the_same() -> None:
    backoff = Backoff(first=1.0, longest=60.0, random=Random(2))
    for failures, most in ((1, 1.0), (2, 2.0), (6, 32.0), (7, 60.0), (10**6, 60.0)):
        waits = {backoff.after(failures) for _ in range(50)}
        assert len(waits) == 50
        assert most / 2 <= min(waits) < max(waits) <= most
