"""Keys over sockets: each request once, while servers are killed and the answers to COMMITs are lost.

`make faults` sends more of them, and kills more often.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.api.service import BROKEN, Service, new_item
from tests.faults.keyed_storm import assert_once, order_of, send, storm
from tests.faults.proxy import At, PostgresProxy
from tests.support.backends import Backend, PostgresBackend
from tests.support.wait import LIMIT, wait_until

LONG = "FAULTS" in os.environ
KEYS = 500 if LONG else 40
KILLS = 20 if LONG else 2
CUTS = 10 * int(os.environ.get("FAULTS", "1"))


@pytest.fixture
def services(backend: Backend, tmp_path: Path) -> Iterator[list[Service]]:
    """Two processes on one database, which want a key for each order."""
    made = [Service(backend, tmp_path / name, pool_size=4) for name in ("a", "b")]
    for each in made:
        each.env["UOW_IDEMPOTENCY__REQUIRED"] = '["POST /orders/"]'
        each.start()
    yield made
    for each in made:
        each.close()


@pytest.mark.backends("sqlite", "pg18")
def test_every_key_has_one_effect_and_one_answer_while_servers_are_killed(
    backend: Backend, services: list[Service]
) -> None:
    """I1, I3, I4: five clients send each key at once to two processes, which are killed with -9 in turn."""
    item = new_item(services[0].client(), stock=2 * KEYS)
    keys = [f"order-{number}" for number in range(KEYS)]
    ports = [service.port for service in services]

    with storm(ports, keys, "/orders/", lambda _: order_of(item)) as told:
        for kill in range(1, KILLS + 1):
            due = kill * KEYS // (KILLS + 1)
            wait_until(lambda due=due: told.done >= due, "orders are placed", limit=8 * LIMIT)  # type: ignore[misc]  # a default binds the loop's variable
            services[kill % 2].restart()

    assert_once(told, keys)
    assert backend.query("SELECT count(*), max(quantity) FROM order_lines") == [(KEYS, 1)]
    assert backend.query("SELECT stock FROM items") == [(KEYS,)]
    assert backend.query(BROKEN) == []
    assert backend.query("SELECT count(*) FROM idempotency_keys WHERE status = 201") == [(KEYS,)]
    assert backend.count("idempotency_keys") == KEYS
    backend.wait_until_at_rest()
    print(dict(told.again), sum(answer.replayed for each in told.answers.values() for answer in each))  # noqa: T201 - how often it had to be tried


@pytest.fixture
def proxy(postgres: PostgresBackend) -> Iterator[PostgresProxy]:
    with PostgresProxy(make_url(postgres.database_url).port or 5432) as proxy:
        yield proxy


@pytest.mark.backends("pg18")
@pytest.mark.parametrize("attempts", [1, 5])
def test_L8_with_a_key_the_client_always_hears_what_happened(
    postgres: PostgresBackend, proxy: PostgresProxy, tmp_path: Path, attempts: int
) -> None:
    """The link is cut before, at, and after COMMIT; without replay 503 says that nothing is kept."""
    service = Service(postgres, tmp_path, url=proxy.url_of(postgres.database_url), ask_outcome=False)
    service.env["UOW_UNIT_OF_WORK__RETRY_ATTEMPTS"] = str(attempts)
    service.start()
    try:
        item = new_item(service.client(), stock=1000)
        placed = 0
        for number in range(CUTS):
            for at in ("before_commit", "commit_sent", "commit_done"):
                kept = at != "before_commit" or attempts > 1
                placed += 1
                lose_one(service, proxy, at, f"{at}-{number}", order_of(item), kept=kept)
                assert postgres.count("orders") == placed == postgres.count("idempotency_keys")
        assert postgres.query(BROKEN) == []
    finally:
        service.close()


def lose_one(service: Service, proxy: PostgresProxy, at: At, key: str, body: bytes, *, kept: bool) -> None:
    """Lose the answer to one COMMIT; what the client is told then is what a repeat finds."""
    hit = proxy.hit
    proxy.cut(at, once=True)
    first, problem = send(service.port, "/orders/", body, key)
    assert proxy.hit > hit
    assert (first.status, problem) == ((201, "") if kept else (503, "/problems/connection-lost")), key

    again, _ = send(service.port, "/orders/", body, key)
    third, _ = send(service.port, "/orders/", body, key)

    assert (again.status, again.replayed) == (201, kept)
    assert again.said == third.said
    assert third.replayed
    if kept:
        assert first.said == again.said
