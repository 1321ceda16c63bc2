"""Requests that are cancelled from outside, and clients that leave."""

import pytest

from tests.lifecycle.service import Service
from tests.support.client import RawClient
from tests.support.hold import hold_commits
from tests.support.wait import wait_until

WAYS = ["task", "scope"]


def stand(service: Service, name: str, way: str) -> RawClient:
    """Send a request that writes, and cancel it before it answers."""
    sent = service.send("POST", "stands", name=name)
    service.wait_until_told(name, "standing")
    service.cancel(name, way)
    if service.mode == "sync":
        service.release(name)  # nobody can stop a thread
    return sent


def waits_for_connection(service: Service, name: str, way: str) -> bytes:
    """Cancel a request that waits for the only connection; what its client gets."""
    with hold_commits(service.backend, "items") as hold:
        holds = service.send("POST", "write", name=f"{name}-first")
        hold.wait_until_waiting()
        waits = service.send("POST", "write", name=name)
        wait_until(lambda: service.seen()["in_flight"] == 2, "the second request is under way")
        service.cancel(name, way)
        hold.release()
        received = waits.read_until_closed()
        answer = holds.answer()
    assert answer is not None
    assert answer.status == 201
    return received


@pytest.mark.parametrize("way", WAYS)
def test_L12_cancelled_before_commit_it_is_rolled_back(service: Service, name: str, way: str) -> None:
    sent = stand(service, name, way)
    assert not sent.read_until_closed().startswith(b"HTTP/1.1 2")
    assert service.told(name) == ["standing", "settled rolled_back"]
    assert service.kept(name) == []
    assert service.post("write", name=name).status_code == 201
    assert service.kept(name) == [name]


@pytest.mark.parametrize("way", WAYS)
def test_L12_cancelled_while_it_waits_for_a_connection_it_leaves_none_behind(
    service: Service, name: str, way: str
) -> None:
    assert not waits_for_connection(service, name, way).startswith(b"HTTP/1.1 2")
    assert service.kept(name) == [f"{name}-first"]


@pytest.mark.parametrize("way", WAYS)
def test_L13_cancelled_during_commit_it_is_committed(service: Service, name: str, way: str) -> None:
    with hold_commits(service.backend, "items") as hold:
        sent = service.send("POST", "write", name=name, body=True)
        hold.wait_until_waiting()
        for _ in range(3):
            service.cancel(name, way)
        assert hold.waiting() == 1
        assert not sent.arrived()
        hold.release()
        received = sent.read_until_closed()
    assert service.told(name)[:2] == ["settled committed", "on_commit"]
    assert service.kept(name) == [name]
    assert b"HTTP/1.1 500" not in received  # it was kept
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-length: 7" in head.lower()
    assert body == b""
    assert service.post("write", name=f"{name}-next").status_code == 201


@pytest.mark.parametrize("way", WAYS)
def test_L13_cancelled_during_a_commit_that_fails_it_is_rolled_back(
    service: Service, name: str, way: str
) -> None:
    with hold_commits(service.backend, "items") as hold:
        sent = service.send("POST", "commit-refused", name=name)
        hold.wait_until_waiting()
        service.cancel(name, way)
        hold.release()
        assert not sent.read_until_closed().startswith(b"HTTP/1.1 2")
    assert service.told(name) == ["settled rolled_back"]
    assert service.kept(name) == []


@pytest.mark.parametrize(("status", "outcome"), [(201, "committed"), (404, "rolled_back")])
def test_L14_a_client_that_has_gone_changes_nothing(
    service: Service, name: str, status: int, outcome: str
) -> None:
    gone = service.seen().get("gone", 0)
    sent = service.send("POST", "until-gone", name=name, status=status)
    service.wait_until_told(name, "standing")
    sent.reset()
    service.wait_until_told(name, "settled")
    told = ["standing", f"settled {outcome}", *(["on_commit"] if status == 201 else []), "background"]
    assert service.told(name) == told
    assert service.kept(name) == ([name] if status == 201 else [])
    assert service.seen()["gone"] > gone  # it was counted


def test_L14_a_client_that_leaves_during_commit_changes_nothing(service: Service, name: str) -> None:
    with hold_commits(service.backend, "items") as hold:
        sent = service.send("POST", "write", name=name)
        hold.wait_until_waiting()
        sent.reset()
        hold.release()
    assert service.told(name) == ["settled committed", "on_commit", "background"]
    assert service.kept(name) == [name]
