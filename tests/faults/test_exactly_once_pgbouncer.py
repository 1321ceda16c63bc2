"""Keys and events behind PgBouncer in transaction mode, with the settings of docs/deployment.md.

Skipped where there is none, see `tests/support/pgbouncer.py`. `make faults` goes on for longer.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from api.database import open_database
from api.settings import Settings
from tests.api.service import BROKEN, Service, new_item
from tests.faults.conftest import DRIVERS, KEPT, MakePooled
from tests.faults.keyed_storm import Told, assert_once, order_of, storm
from tests.faults.receiver import Receiver
from tests.support.pgbouncer import KEEPS_THE_READER, PgBouncerBackend
from tests.support.wait import LIMIT, wait_until
from tests.uow.keys import REPLAYED, Counted, counting, keyed, make_keys, send
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell, until
from tests.uow.units import make_tables, names
from uow.idempotency import sweep

LENGTH = int(os.environ.get("FAULTS", "1"))
KEYS = 24 * LENGTH
BLOWS = 2 * LENGTH
AT_ONCE = 6


@pytest.fixture
def pooled(make: MakePooled, driver: str) -> PgBouncerBackend:
    """Four connections to PostgreSQL for all."""
    return make(DRIVERS[driver], {**KEEPS_THE_READER, **KEPT[driver]})


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def services(pooled: PgBouncerBackend, receiver: Receiver, tmp_path: Path) -> Iterator[list[Service]]:
    """Two processes behind one PgBouncer, each with a relay."""
    with ExitStack() as closing:
        url = closing.enter_context(receiver.serving())
        made = [Service(pooled, tmp_path / name, pool_size=4) for name in ("a", "b")]
        for each in made:
            closing.callback(each.close)
            each.env |= {
                "UOW_OUTBOX__DESTINATIONS": json.dumps([{"name": "shop", "url": url}]),
                "UOW_OUTBOX__RELAY": "true",
                "UOW_OUTBOX__POLL": "100ms",
            }
            each.start()
        yield made


def test_a_key_has_one_effect_and_one_event_while_pgbouncer_is_killed(
    pooled: PgBouncerBackend, services: list[Service], receiver: Receiver
) -> None:
    """I1, I3: five clients send each key at once to both; kill -9, and PgBouncer is back at once."""
    item = new_item(services[0].client(), stock=2 * KEYS)
    keys = [f"order-{number}" for number in range(KEYS)]
    ports = [service.port for service in services]
    with storm(ports, keys, "/orders/", lambda _: order_of(item)) as told:
        for blow in range(1, BLOWS + 1):
            enough = blow * KEYS // (BLOWS + 1)
            wait_until(partial(done, told, enough), "orders are placed", limit=8 * LIMIT)
            pooled.pgbouncer.restart()
    # What was claimed by a COMMIT that nobody could be asked about comes free with its lease.
    wait_until(lambda: pooled.count("outbox_events") == 0, "all is sent", limit=3 * LIMIT)

    assert_once(told, keys)
    orders = {order for (order,) in pooled.query("SELECT id FROM orders")}
    assert len(orders) == KEYS
    assert pooled.query("SELECT stock FROM items") == [(KEYS,)]
    assert pooled.query(BROKEN) == []
    placed = [event["data"]["order_id"] for event in receiver.firsts if event["type"] == "order.placed"]
    assert sorted(placed) == sorted(orders)
    assert "not linked" not in pooled.pgbouncer.log(), "nobody has listened through it"
    print(f"{KEYS} keys, {BLOWS} blows, again {dict(told.again)}, repeats {receiver.repeats}")  # noqa: T201 - figures for the documentation


def done(told: Told, enough: int) -> bool:
    return told.done >= enough


async def test_repeats_at_once_a_relay_that_only_looks_and_a_sweep(pooled: PgBouncerBackend) -> None:
    """Two databases, as two processes have them: one of all repeats does the work, and publishes."""
    for make_table in (make_tables, make_keys, make_outbox_table):
        make_table(pooled)
    received = Received()
    work = Counted(work=lambda _: tell(f"run-{work.runs}"))
    async with open_database(settings_of(pooled)) as here, open_database(settings_of(pooled)) as there:
        apps = [keyed(counting("async", work), each) for each in (here, there)]
        relays = [relay_of(outbox_of(each, received), listens=False) for each in (here, there)]
        async with relays[0], relays[1]:
            for number in range(5):
                repeats = (send(apps[each % 2], f"k-{number}") for each in range(AT_ONCE))
                answers = await asyncio.gather(*repeats)
                assert {answer.status for answer in answers} == {201}
                assert len({answer.body for answer in answers}) == 1
                assert sum(REPLAYED not in answer.headers for answer in answers) == 1
            await until(lambda: pooled.count("outbox_events") == 0, "all is sent")
        assert received.words == names(pooled) == [f"run-{number}" for number in range(1, 6)]

        pooled.execute("UPDATE idempotency_keys SET expires_at = 1 WHERE \"key\" <> 'k-4'")
        assert await sweep(here, batch=3) == 4
        assert pooled.query('SELECT "key" FROM idempotency_keys') == [("k-4",)]


async def test_a_relay_that_nobody_told_of_the_pooler_leaves_no_listener(
    make: MakePooled, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """LISTEN would stay with the one connection that all have, and fill the memory of who has it next."""
    pooled = make(DRIVERS[driver], {**KEEPS_THE_READER, **KEPT[driver], "default_pool_size": "1"})
    make_outbox_table(pooled)
    received = Received()
    async with open_database(settings_of(pooled)) as database:
        async with relay_of(outbox_of(database, received)):
            await until(lambda: "cannot listen through a pooler" in caplog.text, "it to be said")
            async with database.new_unit():
                tell("a")
            await until(lambda: received.words == ["a"], "it to arrive")
        async with database.new_unit() as unit:
            assert (await unit.session.scalars(text("SELECT pg_listening_channels()"))).all() == []


def settings_of(pooled: PgBouncerBackend) -> Settings:
    return Settings.model_validate({"database": {"url": pooled.database_url, "pooler": True}})
