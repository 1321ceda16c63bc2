"""Hazards of many requests at once, and of a pool that is too small."""

from dataclasses import replace

from benchmarks.hazards.catalogue import hazard
from benchmarks.hazards.findings import (
    HELD,
    Finding,
    error_word,
    judge_many,
    judge_wanted,
    succeeded,
)
from benchmarks.hazards.stage import LIMIT, Stage

CLIENTS, EACH = 8, 50
TAKERS = ("w1", "w2")


def gathered(stage: Stage, path: str, *, warm: bool = True) -> Finding:
    """Five calls at once; a warm pool has a connection that the session need not wait for."""
    if stage.peer.sync:
        return Finding("-", "sync sessions are not gathered")
    if warm:
        stage.post("/items", "warm")
        stage.wait_until_through()
    status = stage.post(path)
    stage.wait_until_through()
    finding = judge_wanted(status, stage.rows(), wanted=5)
    errors = ", ".join(each.removeprefix("refused: ") for each in stage.told() if "refused" in each)
    return replace(finding, seen=f"{finding.seen}, {errors}") if errors else finding


@hazard("gather", "A handler gathers five calls that each execute an INSERT with the session of the request.")
def gather_statements(stage: Stage) -> Finding:
    return gathered(stage, "/gather-statements")


@hazard(
    "gather, nothing connected yet",
    "The same in a process that has not been connected before.",
    fresh=True,
)
def gather_in_a_cold_pool(stage: Stage) -> Finding:
    return gathered(stage, "/gather-statements", warm=False)


@hazard("gather of add() and flush()", "A handler gathers five calls that each add an object and flush.")
def gather(stage: Stage) -> Finding:
    return gathered(stage, "/gather")


@hazard(
    "pool of 2, 30 clients",
    "30 clients write at once, the pool has two connections.",
    env={"HAZARDS_POOL_SIZE": "2"},
)
def small_pool(stage: Stage) -> Finding:
    acknowledged, failed = stage.many("/slow", clients=30, each=2)
    stage.wait_until_through()
    return judge_many(acknowledged, stage.rows("n"), failed)


@hazard(
    "slow readers",
    "Two clients do not read a stream that needs the database no more; the pool has two connections, and a "
    "third client writes.",
    env={"HAZARDS_POOL_SIZE": "2", "HAZARDS_POOL_TIMEOUT": "3"},
)
def slow_readers(stage: Stage) -> Finding:
    readers = [stage.raw("GET", "/large", name) for name in ("r1", "r2")]
    for reader in readers:
        reader.arrived(within=LIMIT)
    status = stage.post("/items")
    for reader in readers:
        reader.reset()
    stage.wait_until_through()
    finding = judge_wanted(status, stage.rows())
    return finding if succeeded(status) else Finding("starved", finding.seen)


def take_all(stage: Stage) -> None:
    """Both connections of the pool are taken by handlers that wait."""
    for name in TAKERS:
        stage.raw("POST", "/waits", name)
        stage.wait_until_told("waiting", name=name)


def give_back(stage: Stage) -> None:
    for name in TAKERS:
        stage.release(name)
    stage.wait_until_through()


@hazard(
    "no database, empty pool",
    "Both connections are taken; a path without a database, and one that does not exist, are asked for.",
    env={"HAZARDS_POOL_SIZE": "2", "HAZARDS_POOL_TIMEOUT": "3"},
)
def no_database(stage: Stage) -> Finding:
    take_all(stage)
    before = stage.seen()["checkout"]
    statuses = [stage.ask("GET", path) for path in ("/ping", "/nowhere")]
    opened = stage.seen()["checkout"] - before
    give_back(stage)
    seen = f"{statuses[0]} and {statuses[1]}, {opened} connections taken"
    return Finding(HELD if statuses == [200, 404] and opened == 0 else "starved", seen)


@hazard(
    "no connection in time",
    "Both connections are taken for longer than the pool waits, and a third client writes.",
    env={"HAZARDS_POOL_SIZE": "2", "HAZARDS_POOL_TIMEOUT": "3"},
)
def no_connection_in_time(stage: Stage) -> Finding:
    take_all(stage)
    answer = stage.client.post("/items", params={"name": "a"})
    give_back(stage)
    when = answer.headers.get("retry-after")
    seen = f"{answer.status_code}, " + (f"Retry-After: {when}" if when else "no Retry-After")
    return Finding("503" if answer.status_code == 503 and when else error_word(answer.status_code), seen)


def read_change_write(stage: Stage) -> Finding:
    acknowledged, failed = stage.many("/counters", clients=CLIENTS, each=EACH)
    stage.wait_until_through()
    return judge_many(acknowledged, stage.counter(), failed)


@hazard(
    "read, change, write",
    "8 clients add one to a counter 50 times each, by reading it and writing it.",
    engines=("sqlite",),
)
def lost_updates(stage: Stage) -> Finding:
    return read_change_write(stage)


@hazard(
    "read, change, write, READ COMMITTED",
    "The same on PostgreSQL, as it is set up by default and without a lock.",
)
def lost_updates_read_committed(stage: Stage) -> Finding:
    return read_change_write(stage)


@hazard(
    "read, change, write, SERIALIZABLE",
    "The same with every transaction SERIALIZABLE.",
    env={"HAZARDS_ISOLATION": "SERIALIZABLE"},
)
def serializable_contention(stage: Stage) -> Finding:
    return read_change_write(stage)


@hazard(
    "connections at rest",
    "After requests that end in all these ways, no connection is left in a transaction.",
)
def at_rest(stage: Stage) -> Finding:
    paths = ("/items", "/returned", "/raised", "/mapped", "/broken", "/redirect", "/savepoint")
    statuses = [
        stage.ask("POST", path, f"r{place}", follow_redirects=False) for place, path in enumerate(paths)
    ]
    statuses.append(stage.ask("GET", "/items"))
    stage.wait_until_through()
    return Finding(HELD, " ".join(map(str, statuses)))
