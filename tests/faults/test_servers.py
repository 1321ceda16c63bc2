"""Cancellation as a real server does it: its shutdown, and clients that leave."""

from __future__ import annotations

import signal
from typing import Any

from tests.support.backends import Backend, Mode
from tests.support.hold import hold_commits
from tests.support.server import UvicornServer
from tests.support.wait import wait_until


def state(server: UvicornServer) -> Any:
    return server.client().get("/state").json()


def test_a_shutdown_during_commit_commits_and_the_process_ends(
    backend: Backend, mode: Mode, server: UvicornServer
) -> None:
    """L13: uvicorn cancels its tasks when its time for a graceful shutdown is over.

    What the client sees is cut off and never a 500, which uvicorn would send of a request without a start.
    """
    with hold_commits(backend, "items") as hold:
        client = server.raw().request("POST", f"/{mode}/items/kept")
        hold.wait_until_waiting()
        server.send(signal.SIGTERM)
        wait_until(lambda: "timeout graceful shutdown exceeded" in server.log(), "uvicorn cancels")
        assert server.alive
        assert client.peek() == b""
        assert hold.waiting() == 1
        hold.release()
        server.wait_until_gone()

    assert backend.query("SELECT name FROM items") == [("kept",)]
    head, end, body = client.read_until_closed().partition(b"\r\n\r\n")
    assert (head[:12], end, body) == (b"HTTP/1.1 201", b"\r\n\r\n", b"")
    backend.wait_until_at_rest()


def test_a_shutdown_before_commit_rolls_back_and_the_process_ends(
    backend: Backend, server: UvicornServer
) -> None:
    """L12."""
    client = server.raw().request("POST", "/async/stand/never")
    wait_until(lambda: bool(state(server)["standing"]), "the handler has written")
    server.send(signal.SIGTERM)
    server.wait_until_gone()

    assert "timeout graceful shutdown exceeded" in server.log()
    assert b"HTTP/1.1 2" not in client.read_until_closed()
    assert backend.count("items") == 0
    backend.wait_until_at_rest()


def test_a_client_that_leaves(backend: Backend, server: UvicornServer) -> None:
    """L13 in a stream, where leaving cancels; L14 elsewhere: the status decides. Both are counted."""
    with hold_commits(backend, "items") as hold:
        for mode in ("async", "sync"):
            hold.hold()
            client = server.raw().request("POST", f"/{mode}/stream/{mode}")
            hold.wait_until_waiting()
            client.reset()
            name = f"POST /{mode}/stream/{mode}"
            wait_until(lambda name=name: name in state(server)["gone"], "the server knows")  # type: ignore[misc]  # a default binds the loop's variable
            hold.release()
            wait_until(lambda name=name: name in state(server)["outcomes"], "it is settled")  # type: ignore[misc]  # as above
            assert state(server)["outcomes"][name] == "committed"
    for status in (201, 404):
        client = server.raw().request("POST", f"/async/until-gone/n{status}?status={status}")
        wait_until(lambda: f"n{status}" in state(server)["standing"], "the handler has written")  # noqa: B023 - called at once
        client.reset()
        wait_until(lambda: f"POST /async/until-gone/n{status}" in state(server)["outcomes"], "it is settled")  # noqa: B023 - called at once

    told = state(server)
    assert told["outcomes"]["POST /async/until-gone/n201"] == "committed"
    assert told["outcomes"]["POST /async/until-gone/n404"] == "rolled_back"
    assert {"POST /async/until-gone/n201", "POST /async/until-gone/n404"} <= set(told["gone"])
    assert {row[0] for row in backend.query("SELECT name FROM items")} == {"async", "sync", "n201"}
    for mode in ("async", "sync"):
        assert server.client().post(f"/{mode}/items/next-{mode}").status_code == 201
    backend.wait_until_at_rest()
