"""L8 over sockets: COMMITs whose answers are lost, one by one under load, with a crash, and with a failover.

`make faults` cuts more of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import httpx
import pytest

from tests.faults.proxy import At, PostgresProxy
from tests.faults.replay_app import SCHEMA
from tests.faults.standby import StandbyServer
from tests.faults.storm import Load, load
from tests.support.backends import Mode, PostgresBackend
from tests.support.postgres import PostgresServer, wheel_binaries
from tests.support.server import Serve, UvicornServer
from tests.support.wait import LIMIT, wait_until

LENGTH = int(os.environ.get("FAULTS", "1"))
CUTS = 10 * LENGTH
APP = "tests.faults.replay_app:create_app"
LINKS: dict[str, tuple[str, Mode]] = {
    "asyncpg": ("asyncpg", "async"),
    "psycopg": ("psycopg", "async"),
    "sync": ("psycopg", "sync"),
}
# What is not committed is written late, so that a crash finds it in memory. It is the server that crashes
# here, not the machine.
LAZY = {"wal_writer_delay": "10s", "fsync": "off"}


@dataclass
class Scene:
    """The app on a PostgreSQL server, with a network between them that fails on demand."""

    postgres: PostgresServer
    backend: PostgresBackend
    proxy: PostgresProxy
    server: UvicornServer

    def names(self, start: str) -> set[str]:
        return {name for (name,) in self.backend.query("SELECT name FROM items") if name.startswith(start)}

    @contextmanager
    def asked(self, path: str) -> Iterator[Future[httpx.Response]]:
        """The answer to a request that is made meanwhile."""
        client = self.server.client(timeout=4 * LIMIT)
        with ThreadPoolExecutor(1) as pool:
            try:
                yield pool.submit(client.post, path)
            finally:
                self.proxy.heal()


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that these tests may stop, without a word to the others."""
    binaries = wheel_binaries()
    assert binaries is not None
    postgres = PostgresServer(binaries, settings=LAZY)
    postgres.start()
    yield postgres
    postgres.remove()


@pytest.fixture(scope="module", params=LINKS)
def scene(
    request: pytest.FixtureRequest, own_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    driver, mode = LINKS[cast("str", request.param)]
    folder = tmp_path_factory.mktemp(f"outcome-{request.param}")
    backend = PostgresBackend("pg18", own_postgres, folder)
    backend.execute(SCHEMA)
    serve = Serve(folder)
    with PostgresProxy(own_postgres.port) as proxy:
        url = proxy.url_of(own_postgres.url(backend.dbname, driver))
        env = {"TESTS_STORM_URL": url, "TESTS_MODE": mode, "TESTS_ASK_SECONDS": str(LIMIT)}
        yield Scene(own_postgres, backend, proxy, serve(APP, env=env))
        serve.close()
    backend.drop()


# A link that breaks around COMMIT, while others go on


def cut_under_load(scene: Scene, at: At, way: str) -> Load:
    """What the clients were told while one COMMIT after the other lost its link."""
    path = f"/read-committed/{way}/items/{at}-{way}-"
    with load(scene.server.port, writers=4, readers=2, prefix=path) as told:
        for _ in range(CUTS):
            cut_one(scene, at, told)
    assert told.cut == []
    return told


def cut_one(scene: Scene, at: At, told: Load) -> None:
    hit, before = scene.proxy.hit, written(told)
    scene.proxy.cut(at, once=True)
    wait_until(lambda: scene.proxy.hit > hit, "a COMMIT was cut off")
    wait_until(lambda: written(told) >= before + 4, "the others go on")


def written(told: Load) -> int:
    return sum(answer.path != "/count" for answer in list(told.answers))


@pytest.mark.parametrize("way", ["once", "replay"])
@pytest.mark.parametrize("at", ["before_commit", "commit_sent", "commit_done"])
def test_L8_who_loses_the_answer_to_a_commit_is_told_the_truth(scene: Scene, at: At, way: str) -> None:
    """A client read 2xx if and only if its row is there; with replay everybody read one."""
    told = cut_under_load(scene, at, way)

    lost = CUTS if (at, way) == ("before_commit", "once") else 0
    writes = [answer for answer in told.answers if answer.path != "/count"]
    refused = [answer for answer in told.answers if answer.status != 200]
    assert all(answer.may_come_again for answer in refused)
    # psycopg has a COMMIT of its own when it connects: a cut of that one costs nobody who asks an answer.
    assert lost / 2 <= len(refused) <= lost
    acknowledged = [answer.path.rpartition("/")[2] for answer in writes if answer.status == 200]
    assert set(acknowledged) == scene.names(f"{at}-{way}-")
    assert len(set(acknowledged)) == len(acknowledged)
    scene.backend.wait_until_at_rest()


# A crash of the database at COMMIT: the same timeline, and perhaps the same numbers again


NUMBER = "SELECT backend_xid::text FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
on_few_links = pytest.mark.parametrize("scene", ["asyncpg"] if LENGTH == 1 else LINKS, indirect=True)


def give_numbers_until(postgres: PostgresServer, number: int, *, end: str = "COMMIT") -> None:
    """Let others commit, or roll back, until one of them has had this number."""
    given = f"WHILE pg_current_xact_id() < '{number}'::xid8 LOOP {end}; END LOOP; {end};"
    postgres.query("postgres", f"DO $$ BEGIN {given} END $$")
    assert status_of(postgres, number) in {"committed", "aborted"}


def status_of(postgres: PostgresServer, number: int) -> str | None:
    """What became of a transaction; None if nobody has had its number yet."""
    status = f"CASE WHEN age('{number}'::xid) > 0 THEN pg_xact_status('{number}'::xid8) END"
    found: str | None = postgres.query("postgres", f"SELECT {status}")[0][0]
    return found


@contextmanager
def crashed_before_commit(
    scene: Scene, path: str, *, on_disk: bool
) -> Iterator[tuple[Future[httpx.Response], int]]:
    """A COMMIT stands in the network, the database has crashed, is up again, and not within reach.

    Gives the answer that will come, and the number that the transaction had; what of it was `on_disk`
    survives, and so does the number.
    """
    assert scene.server.client().get("/count").status_code == 200
    hit = scene.proxy.hit
    scene.proxy.stall("before_commit", everywhere=True)
    with scene.asked(path) as answer:
        wait_until(lambda: scene.proxy.hit > hit, "a COMMIT is on its way")
        ((number,),) = scene.backend.query(NUMBER)
        if on_disk:
            scene.backend.query("SELECT pg_switch_wal()")
        scene.postgres.restart(immediate=True)
        yield answer, int(number)


@on_few_links
@pytest.mark.parametrize("on_disk", [True, False], ids=["on-disk", "in-memory"])
@pytest.mark.parametrize(("way", "status"), [("once", 503), ("replay", 200)])
def test_L8_after_a_crash_what_was_not_committed_is_known_to_be_undone(
    scene: Scene, way: str, status: int, on_disk: bool
) -> None:
    name = f"crash-{way}-{on_disk}"
    path = f"/read-committed/{way}/items/{name}"
    with crashed_before_commit(scene, path, on_disk=on_disk) as (answer, number):
        if on_disk:
            give_numbers_until(scene.postgres, number + 1)
        scene.proxy.heal()
        assert answer.result().status_code == status
    assert scene.names(name) == ({name} if status == 200 else set())


@on_few_links
def test_L8_a_number_that_a_crash_gave_to_another_transaction_says_nothing(scene: Scene) -> None:
    """PostgreSQL forgets the number of what had not reached the disk, and gives it out again."""
    path = "/read-committed/replay/items/forgotten"
    with crashed_before_commit(scene, path, on_disk=False) as (answer, number):
        give_numbers_until(scene.postgres, number)
        assert scene.backend.query(f"SELECT pg_xact_status('{number}'::xid8)") == [("committed",)]
        scene.proxy.heal()
        told = answer.result()
    assert (told.status_code, told.json()["type"]) == (500, "/problems/commit-outcome-unknown")
    assert scene.names("forgotten") == set()


# A failover


@pytest.fixture
def standby(own_postgres: PostgresServer) -> Iterator[StandbyServer]:
    own_postgres.start()
    binaries = wheel_binaries()
    assert binaries is not None
    standby = StandbyServer(binaries, own_postgres, settings=LAZY)
    yield standby
    standby.remove()
    own_postgres.start()


@on_few_links
def test_L8_after_a_failover_nothing_is_guessed(scene: Scene, standby: StandbyServer) -> None:
    """The promoted standby never had the transaction, and gave its number to somebody else."""
    client = scene.server.client()
    assert client.post("/read-committed/once/items/before").status_code == 200
    standby.start()
    standby.wait_until_level()
    standby.leave()
    hit = scene.proxy.hit
    scene.proxy.cut("commit_sent", everywhere=True)

    with scene.asked("/read-committed/replay/items/lost") as answer:
        wait_until(lambda: scene.proxy.hit > hit, "the answer to a COMMIT is lost")
        wait_until(lambda: scene.names("lost") == {"lost"}, "the primary has committed it")
        ((number,),) = scene.backend.query("SELECT xmin::text FROM items WHERE name = 'lost'")
        scene.postgres.stop(immediate=True)
        standby.promote()
        give_numbers_until(standby, int(number))
        assert standby.query("postgres", f"SELECT pg_xact_status('{number}'::xid8)") == [("committed",)]
        scene.proxy.leads_to(standby.port)
        assert not answer.done()
        scene.proxy.heal()
        told = answer.result()

    assert (told.status_code, told.json()["type"]) == (500, "/problems/commit-outcome-unknown")
    assert told.json()["outcome"] == "unknown"
    names = "SELECT name FROM items WHERE name IN ('before', 'lost', 'after')"
    assert standby.query(scene.backend.dbname, names) == [("before",)]
    assert client.post("/read-committed/replay/items/after").status_code == 200
    assert len(standby.query(scene.backend.dbname, names)) == 2
    scene.proxy.leads_to(scene.postgres.port)
    scene.proxy.cut()


# Another cluster behind the same address, which is on its first timeline as well


TIMELINE = "SELECT timeline_id FROM pg_control_checkpoint()"
NEXT = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"


@pytest.fixture(scope="module")
def another_postgres() -> Iterator[PostgresServer]:
    """A cluster that has nothing to do with the first one."""
    binaries = wheel_binaries()
    assert binaries is not None
    postgres = PostgresServer(binaries, settings=LAZY)
    postgres.start()
    yield postgres
    postgres.remove()


@pytest.fixture
def elsewhere(scene: Scene, another_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """That cluster, with the app's database and tables, and nothing in them."""
    dbname = another_postgres.create_database(scene.backend.dbname)
    another_postgres.query(dbname, SCHEMA)
    yield another_postgres
    scene.proxy.leads_to(scene.postgres.port)
    scene.proxy.cut()
    another_postgres.drop_database(dbname)


@on_few_links
@pytest.mark.parametrize("there", ["committed", "aborted", None])
def test_L8_another_cluster_has_no_say(scene: Scene, elsewhere: PostgresServer, there: str | None) -> None:
    """The link is moved after COMMIT to a server where the same number is somebody else's, or nobody's."""
    timelines = [server.query("postgres", TIMELINE) for server in (scene.postgres, elsewhere)]
    assert timelines[0] == timelines[1]
    ((following,),) = elsewhere.query("postgres", NEXT)
    give_numbers_until(scene.postgres, int(following) + 10)
    name = f"elsewhere-{there}"
    assert scene.server.client().post(f"/read-committed/replay/items/before-{name}").status_code == 200
    hit = scene.proxy.hit
    scene.proxy.cut("commit_sent", everywhere=True)

    with scene.asked(f"/read-committed/replay/items/{name}") as answer:
        wait_until(lambda: scene.proxy.hit > hit, "the answer to a COMMIT is lost")
        wait_until(lambda: scene.names(name) == {name}, "it was committed")
        ((number,),) = scene.backend.query(f"SELECT xmin::text FROM items WHERE name = '{name}'")
        if there is not None:
            give_numbers_until(elsewhere, int(number), end="COMMIT" if there == "committed" else "ROLLBACK")
        assert status_of(elsewhere, int(number)) == there
        scene.proxy.leads_to(elsewhere.port)
        assert not answer.done()
        scene.proxy.heal()
        told = answer.result()

    assert (told.status_code, told.json().get("type")) == (500, "/problems/commit-outcome-unknown")
    assert told.json()["outcome"] == "unknown"
    assert elsewhere.query(scene.backend.dbname, "SELECT name FROM items") == []
