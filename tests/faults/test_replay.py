"""L6 and L7 over sockets: storms on few rows, and a database that goes away under load.

`make faults` runs them longer. What is drawn at random is drawn from a seed that the test prints.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import cast

import pytest

from tests.faults.replay_app import SCHEMA
from tests.faults.storm import Answer, Load, load, storm
from tests.support.backends import Mode, PostgresBackend
from tests.support.postgres import PostgresServer, wheel_binaries
from tests.support.server import Serve, UvicornServer
from tests.support.wait import LIMIT, wait_until

LENGTH = int(os.environ.get("FAULTS", "1"))
CLIENTS = 16
APP = "tests.faults.replay_app:create_app"
LINKS: dict[str, tuple[str, Mode]] = {
    "asyncpg": ("asyncpg", "async"),
    "psycopg": ("psycopg", "async"),
    "sync": ("psycopg", "sync"),
}
# A deadlock is looked for after this time; the default of a second would be most of what the tests take.
QUICK = {"deadlock_timeout": "20ms"}


@dataclass
class Scene:
    """A PostgreSQL server of the test's own, and the app on it."""

    postgres: PostgresServer
    backend: PostgresBackend
    server: UvicornServer

    def values(self, *rows: int) -> list[int]:
        """What the counters say, seen through a second connection."""
        said: dict[int, int] = dict(self.backend.query("SELECT id, n FROM counters"))
        return [said[row] for row in rows]

    def names(self) -> set[str]:
        return {row[0] for row in self.backend.query("SELECT name FROM items")}

    def ended(self) -> Counter[str]:
        """How the attempts have ended so far."""
        return Counter(self.server.client().get("/ended").json())


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that these tests may stop, without a word to the others."""
    binaries = wheel_binaries()
    assert binaries is not None
    postgres = PostgresServer(binaries, settings=QUICK)
    postgres.start()
    yield postgres
    postgres.remove()


@pytest.fixture(scope="module", params=LINKS)
def scene(
    request: pytest.FixtureRequest, own_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    driver, mode = LINKS[cast("str", request.param)]
    folder = tmp_path_factory.mktemp(f"replay-{request.param}")
    backend = PostgresBackend("pg18", own_postgres, folder)
    backend.execute(SCHEMA)
    serve = Serve(folder)
    env = {"TESTS_STORM_URL": own_postgres.url(backend.dbname, driver), "TESTS_MODE": mode}
    yield Scene(own_postgres, backend, serve(APP, env=env))
    serve.close()
    backend.drop()


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


# L6: storms


@pytest.mark.parametrize(("row", "level"), [(1, "repeatable-read"), (2, "serializable")])
def test_L6_increments_that_meet_are_all_done_and_none_is_lost(scene: Scene, row: int, level: str) -> None:
    answers = storm(
        scene.server.port,
        clients=CLIENTS,
        rounds=5 * LENGTH,
        path=lambda *_: f"/{level}/replay/increment/{row}",
    )
    assert statuses(answers) == {200: CLIENTS * 5 * LENGTH}
    # Each value was read and changed by one request alone.
    values = sorted(json.loads(answer.body)["n"] for answer in answers)
    assert values == list(range(1, CLIENTS * 5 * LENGTH + 1))
    assert scene.values(row) == [CLIENTS * 5 * LENGTH]
    assert scene.ended()["later committed"] > 0
    scene.backend.wait_until_at_rest()


@pytest.mark.parametrize(("row", "level"), [(11, "repeatable-read"), (12, "serializable")])
def test_without_replay_who_lost_is_told_to_come_back(scene: Scene, row: int, level: str) -> None:
    before = scene.ended()
    answers = storm(
        scene.server.port,
        clients=CLIENTS,
        rounds=3 * LENGTH,
        path=lambda *_: f"/{level}/once/increment/{row}",
    )
    told = statuses(answers)
    assert set(told) == {200, 503}
    assert all(answer.may_come_again for answer in answers if answer.status == 503)
    assert scene.values(row) == [told[200]]
    ended = scene.ended() - before
    assert ended == {"first committed": told[200], "first rolled_back": told[503]}


def opposite(level: str, way: str, row: int, client: int) -> str:
    return f"/{level}/{way}/both/{row}?order={('up', 'down')[client % 2]}"


@pytest.mark.parametrize(("row", "level"), [(21, "read-committed"), (23, "serializable")])
def test_L6_two_rows_that_are_locked_in_opposite_orders_fail_nobody(
    scene: Scene, row: int, level: str
) -> None:
    """Deadlocks: the database ends one of two, which is run again."""
    answers = storm(
        scene.server.port,
        clients=CLIENTS,
        rounds=2 * LENGTH,
        path=lambda client, _: opposite(level, "replay", row, client),
    )
    assert statuses(answers) == {200: CLIENTS * 2 * LENGTH}
    assert scene.values(row, row + 1) == [CLIENTS * 2 * LENGTH] * 2
    scene.backend.wait_until_at_rest()


def test_without_replay_a_deadlock_is_told_to_who_lost(scene: Scene) -> None:
    answers = storm(
        scene.server.port,
        clients=CLIENTS,
        rounds=2 * LENGTH,
        path=lambda client, _: opposite("read-committed", "once", 31, client),
    )
    told = statuses(answers)
    assert set(told) == {200, 503}
    assert all(answer.may_come_again for answer in answers if answer.status == 503)
    assert scene.values(31, 32) == [told[200]] * 2


# L7: the database goes away


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    made = 1000 * LENGTH + len(request.node.name)
    print(f"seed {made}")  # noqa: T201 - who repeats a failure needs it
    return made


@contextmanager
def under_load(scene: Scene, prefix: str) -> Iterator[Load]:
    """Writers and readers, who are judged when the block has ended."""
    path = f"/read-committed/replay/items/{prefix}-"
    with load(scene.server.port, writers=8, readers=4, prefix=path) as told:
        wait_until(lambda: told.acknowledged() > 50, "the load has begun")
        yield told
    assert told.cut == []
    refused = [answer for answer in told.answers if answer.status != 200]
    # Whether a COMMIT that was under way took effect is not known; nothing else may be said.
    assert {json.loads(answer.body)["type"] for answer in refused} <= {"/problems/commit-outcome-unknown"}
    acknowledged, unknown = (
        {answer.path.rpartition("/")[2] for answer in told.answers if answer.status == status}
        for status in (200, 500)
    )
    found = {name for name in scene.names() if name.startswith(prefix)}
    assert acknowledged - {"count"} <= found <= acknowledged | unknown
    # Such a COMMIT is one for each writer at most, each time.
    assert len(unknown) <= 8 * 3 * LENGTH
    scene.backend.wait_until_at_rest()


def rate(told: Load) -> float:
    """Answers in a second, of the next 100."""
    begun, first = time.monotonic(), told.acknowledged()
    wait_until(lambda: told.acknowledged() >= first + 100, "100 more were acknowledged", limit=2 * LIMIT)
    return (told.acknowledged() - first) / (time.monotonic() - begun)


def test_L7_all_connections_cut_under_load_cost_nobody_an_error(scene: Scene, seed: int) -> None:
    random = Random(seed)
    with under_load(scene, "cut") as told:
        before = rate(told)
        for _ in range(3 * LENGTH):
            enough = told.acknowledged() + random.randint(20, 100)
            wait_until(lambda enough=enough: told.acknowledged() >= enough, "it goes on")  # type: ignore[misc]  # a default binds the loop's variable
            assert scene.backend.terminate_all_backends() > 0
        wait_until(lambda: rate(told) > 0.7 * before, "the full rate is back", limit=4 * LIMIT)
    assert scene.ended()["later committed"] > 0


def test_L7_a_crash_of_the_database_under_load_costs_nobody_an_error(scene: Scene, seed: int) -> None:
    """Stopped at once, as by a power failure, and started again: the clients wait meanwhile."""
    random = Random(seed)
    with under_load(scene, "crash") as told:
        before = rate(told)
        for _ in range(LENGTH):
            enough = told.acknowledged() + random.randint(20, 100)
            wait_until(lambda enough=enough: told.acknowledged() >= enough, "it goes on")  # type: ignore[misc]  # a default binds the loop's variable
            scene.postgres.restart(immediate=True)
        wait_until(lambda: rate(told) > 0.7 * before, "the full rate is back", limit=4 * LIMIT)


def test_L7_a_restart_at_rest_is_not_seen_by_the_next_requests(scene: Scene) -> None:
    """Whether a ping finds out or the first statement does."""
    client = scene.server.client()
    assert client.get("/count").status_code == 200
    assert client.post("/read-committed/once/items/before").status_code == 200
    scene.postgres.restart(immediate=True)
    names = [f"after-{number}" for number in range(5)]
    answers = [client.post(f"/read-committed/replay/items/{name}") for name in names]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert client.get("/count").status_code == 200
    assert {"before", *names} <= scene.names()
