"""Hazards of a process that dies: the database's, or the app's own."""

import time
from typing import cast

from benchmarks.hazards.catalogue import hazard
from benchmarks.hazards.findings import HELD, Finding, error_word, judge
from benchmarks.hazards.stage import Stage
from tests.support.backends import PostgresBackend


def restart_postgres(stage: Stage) -> None:
    cast("PostgresBackend", stage.backend).server.restart(immediate=True)


@hazard(
    "after a PostgreSQL restart",
    "PostgreSQL is restarted while the app is idle; then five clients write, one after the other.",
)
def after_a_restart(stage: Stage) -> Finding:
    stage.many("/slow", clients=5, each=2)
    restart_postgres(stage)
    time.sleep(1.5)  # the app has been idle for more than a second, as between two requests of a night
    statuses = [stage.post("/items", f"a-{number}") for number in range(5)]
    stage.wait_until_through()
    rows = stage.rows()
    seen = f"{' '.join(map(str, statuses))}, {rows} saved"
    if rows < statuses.count(201):
        return Finding("lost", seen)
    return Finding(next((error_word(status) for status in statuses if status != 201), HELD), seen)


@hazard("PostgreSQL dies in COMMIT", "PostgreSQL is killed while COMMIT is under way, and comes back.")
def postgres_dies_in_commit(stage: Stage) -> Finding:
    with stage.held() as hold:
        client = stage.raw("POST", "/items")
        hold.wait_until_waiting()
        client.arrived(within=0.5)
        restart_postgres(stage)
    status = stage.status(client)
    stage.wait_until_through()
    return judge(status, stage.rows())


@hazard("kill -9 in COMMIT", "The app is killed while COMMIT is under way.", engines=("sqlite",))
def app_dies_in_commit(stage: Stage) -> Finding:
    with stage.held() as hold:
        client = stage.raw("POST", "/items")
        hold.wait_until_waiting()
        client.arrived(within=0.5)
        stage.server.kill()
    return judge(stage.status(client), stage.rows())
