"""Hazards of a request that is cancelled, or whose client has gone."""

import contextlib
import signal

from benchmarks.hazards.catalogue import hazard
from benchmarks.hazards.findings import Finding, judge
from benchmarks.hazards.stage import Stage
from tests.support.wait import NeverHappened, wait_until

TIMEOUT = {"X-Timeout": "0.5"}
ENOUGH = 2.0
"""Seconds for which COMMIT is held open: by then a time-out, or a limit of the server, is over."""


@hazard(
    "time-out before COMMIT", "A time-out around the app ends a handler that has written, and answers 504."
)
def timeout_before_commit(stage: Stage) -> Finding:
    client = stage.raw("POST", "/waits", headers=TIMEOUT)
    stage.wait_until_told("waiting")
    if stage.peer.sync:
        client.arrived(within=ENOUGH)
        stage.release()  # nobody can cancel a thread
    status = stage.status(client)
    stage.wait_until_through()
    return judge(status, stage.rows())


@hazard(
    "time-out during COMMIT",
    "The same while COMMIT is under way; it is held open until the time-out is over.",
)
def timeout_during_commit(stage: Stage) -> Finding:
    with stage.held() as hold:
        client = stage.raw("POST", "/items", headers=TIMEOUT)
        hold.wait_until_waiting()
        if client.arrived(within=ENOUGH) and stage.status(client) == 201:
            # The success is out; what is left is to see whether the time-out undoes it.
            with contextlib.suppress(NeverHappened):
                wait_until(lambda: hold.waiting() == 0, "COMMIT was given up", limit=ENOUGH)
    status = stage.status(client)
    stage.wait_until_through()
    return judge(status, stage.rows())


@hazard(
    "shutdown before COMMIT",
    "SIGTERM, and the server's own limit for open requests passes while a handler that has written waits.",
    graceful_shutdown=1,
)
def shutdown_before_commit(stage: Stage) -> Finding:
    client = stage.raw("POST", "/waits")
    stage.wait_until_told("waiting")
    if stage.peer.sync:
        stage.release()
    stage.server.send(signal.SIGTERM)
    stage.server.wait_until_gone()
    return judge(stage.status(client), stage.rows())


@hazard(
    "shutdown during COMMIT",
    "The same while COMMIT is under way; it is held open until the limit has passed.",
    graceful_shutdown=1,
)
def shutdown_during_commit(stage: Stage) -> Finding:
    with stage.held() as hold:
        client = stage.raw("POST", "/items")
        hold.wait_until_waiting()
        stage.server.send(signal.SIGTERM)
        with contextlib.suppress(NeverHappened):
            wait_until(lambda: not stage.server.alive, "the server has gone", limit=1 + ENOUGH)
    stage.server.wait_until_gone()
    stage.backend.wait_until_at_rest()
    return judge(stage.status(client), stage.rows())


@hazard(
    "client gone before COMMIT", "The client resets its connection while a handler that has written waits."
)
def client_gone_before_commit(stage: Stage) -> Finding:
    client = stage.raw("POST", "/waits")
    stage.wait_until_told("waiting")
    client.reset()
    stage.release()
    stage.wait_until_through()
    return judge(None, stage.rows())


@hazard("client gone during COMMIT", "The client resets its connection while COMMIT is under way.")
def client_gone_during_commit(stage: Stage) -> Finding:
    with stage.held() as hold:
        client = stage.raw("POST", "/items")
        hold.wait_until_waiting()
        client.reset()
    stage.wait_until_through()
    return judge(None, stage.rows())
