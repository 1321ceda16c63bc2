"""What a BaseHTTPMiddleware of the user's changes, inside and around ours."""

import dataclasses

import pytest

from tests.lifecycle.model import ROWS
from tests.lifecycle.service import Service
from tests.support.client import RawClient
from tests.support.hold import hold_commits
from tests.support.wait import wait_until

pytestmark = pytest.mark.backends("sqlite", "pg18")

LAST_CHUNK = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def apps() -> list[str]:
    return ["theirs-inside", "theirs-outside"]


@pytest.fixture(params=["theirs-inside", "theirs-outside"])
def stacked(request: pytest.FixtureRequest, service: Service) -> Service:
    """The app under test with the middleware on either side."""
    return dataclasses.replace(service, stack=request.param)


inside = pytest.mark.parametrize("stacked", ["theirs-inside"], indirect=True)
outside = pytest.mark.parametrize("stacked", ["theirs-outside"], indirect=True)


@inside
def test_L2_what_it_answers_inside_ours_is_judged(stacked: Service, name: str) -> None:
    assert stacked.post("write", name=name, says=503).status_code == 503
    assert stacked.kept(name) == []
    assert "settled rolled_back" in stacked.told(name)


@inside
def test_L1_an_exception_that_it_makes_a_success_inside_ours_is_a_success(
    stacked: Service, name: str
) -> None:
    assert stacked.post("raises", name=name, kind="crash", says=200).status_code == 200
    assert stacked.kept(name) == [name]


@inside
def test_L9_but_not_if_the_database_has_refused_something(stacked: Service, name: str) -> None:
    assert stacked.post("flush-refused-early", name=name, says=200).status_code == 500
    assert stacked.kept(name) == []


@outside
@pytest.mark.differs
def test_L2_what_it_answers_around_ours_comes_after_commit(stacked: Service, name: str) -> None:
    assert stacked.post("write", name=name, says=503).status_code == 503
    assert stacked.told(name)[:1] == ["settled committed"]
    assert stacked.kept(name) == [name]


@outside
@pytest.mark.differs
@pytest.mark.parametrize(("case", "kind"), [("raises", "crash"), ("commit-refused", "")])
def test_L1_it_can_call_a_success_around_ours_what_was_rolled_back(
    stacked: Service, name: str, case: str, kind: str
) -> None:
    assert stacked.post(case, name=name, kind=kind, says=200).status_code == 200
    assert stacked.told(name)[:1] == ["settled rolled_back"]
    assert stacked.kept(name) == []


@outside
@pytest.mark.differs
@pytest.mark.parametrize("way", ["task", "scope"])
def test_L13_cancelled_during_commit_around_ours_it_is_committed_and_the_server_says_500(
    stacked: Service, name: str, way: str
) -> None:
    """Nobody takes the answer any more, so the server makes one."""
    with hold_commits(stacked.backend, "items") as hold:
        sent = stacked.send("POST", "write", name=name)
        hold.wait_until_waiting()
        stacked.cancel(name, way)
        hold.release()
        received = sent.read_until_closed()
    assert received.startswith(b"HTTP/1.1 500 ")
    assert stacked.told(name)[:2] == ["settled committed", "on_commit"]
    assert stacked.kept(name) == [name]


def cut_stream(service: Service, name: str, method: str, case: str, length: int) -> bytes:
    """What a client gets of a stream whose generator fails behind its first chunk."""
    service.add_items(*(f"{name}-{number}" for number in ROWS))
    params = {"how": "one by one", "end": "raises"} if method == "GET" else {"how": "raises"}
    sent: RawClient = service.send(method, case, name=name, length=length, **params)
    service.wait_until_told(name, "paused")
    service.release(name)
    return sent.read_until_closed()


@pytest.mark.differs
def test_L15_and_L27_a_cut_stream_looks_complete_behind_it(stacked: Service, name: str) -> None:
    """Starlette's BaseHTTPMiddleware ends the body before it raises what the app has raised."""
    received = cut_stream(stacked, name, "GET", "stream", 0)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(LAST_CHUNK)


@pytest.mark.differs
def test_L16_and_L27_a_cut_stream_after_writing_looks_complete_behind_it(stacked: Service, name: str) -> None:
    received = cut_stream(stacked, name, "POST", "stream-after-writing", 0)
    assert received.startswith(b"HTTP/1.1 201 ")
    assert received.endswith(LAST_CHUNK)
    assert name in stacked.kept(name)


@pytest.mark.parametrize(
    ("method", "case"), [("GET", "stream"), ("POST", "stream-after-writing")], ids=["L15", "L16"]
)
def test_L15_and_L16_and_L27_a_content_length_tells_that_it_is_cut(
    stacked: Service, name: str, method: str, case: str
) -> None:
    received = cut_stream(stacked, name, method, case, 1000)
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-length: 1000" in head.lower()
    assert 0 < len(body) < 1000


@inside
@pytest.mark.differs
def test_L16_a_generator_runs_one_step_ahead_and_its_work_is_kept_or_refused(
    stacked: Service, name: str
) -> None:
    sent = stacked.send("POST", "stream-after-writing", name=name, how="early")
    wait_until(lambda: len(stacked.seen(name)["told"]) > 1, "it was kept or refused")
    refused = any(each.startswith("early: UnitOfWorkClosed: ") for each in stacked.seen(name)["told"])
    if not refused:
        stacked.wait_until_told(name, "paused")
        stacked.release(name)
    assert sent.read_until_closed().startswith(b"HTTP/1.1 201 ")
    assert stacked.kept(name) == ([name] if refused else [name, f"{name}-early"])
