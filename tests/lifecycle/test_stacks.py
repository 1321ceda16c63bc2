"""The core of the contract on other arrangements: plain Starlette, a mounted FastAPI, and a
BaseHTTPMiddleware of the user's inside and outside ours.
"""

import dataclasses
from typing import Any

import pytest

from tests.lifecycle.model import ROWS
from tests.lifecycle.service import Service, problem
from tests.support.client import RawClient
from tests.support.hold import hold_commits

pytestmark = pytest.mark.backends("sqlite", "pg18")

STACKS = ["starlette", "mounted", "mounted-with-ours", "theirs-inside", "theirs-outside"]
COMMITTED = ["settled committed", "on_commit", "background"]
A_MOMENT = 0.3  # seconds in which an answer that does not wait for COMMIT would be here many times over
LAST_CHUNK = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def apps() -> list[str]:
    return ["plain", *STACKS, *(f"{stack}-handled" for stack in STACKS)]


@pytest.fixture(params=STACKS)
def stacked(request: pytest.FixtureRequest, service: Service) -> Service:
    """The app under test in each of the arrangements."""
    return dataclasses.replace(service, stack=request.param)


@pytest.fixture
def handled(stacked: Service) -> Service:
    """The same with a handler of its own for IntegrityError."""
    return dataclasses.replace(stacked, stack=f"{stacked.stack}-handled")


def begin(service: Service, method: str, case: str, name: str, **params: Any) -> RawClient:
    """Send the request, and return when the stream has paused behind its first chunk."""
    sent = service.send(method, case, name=name, **params)
    service.wait_until_told(name, "paused")
    return sent


@pytest.mark.parametrize("status", [201, 302])
def test_L1_a_2xx_or_3xx_is_committed(stacked: Service, name: str, status: int) -> None:
    answer = stacked.post("write", name=name, status=status)
    assert answer.status_code == status
    assert ("x-theirs" in answer.headers) is stacked.stack.startswith("theirs")
    assert stacked.kept(name) == [name]
    assert stacked.told(name) == COMMITTED


def test_L1_no_byte_leaves_before_the_database_has_acknowledged_commit(stacked: Service, name: str) -> None:
    with hold_commits(stacked.backend, "items") as hold:
        sent = stacked.send("POST", "write", name=name)
        hold.wait_until_waiting()
        assert not sent.arrived(within=A_MOMENT)
        assert stacked.kept(name) == []
        hold.release()
        answer = sent.answer()
    assert answer is not None
    assert answer.status == 201
    assert stacked.kept(name) == [name]


def test_L1_the_decorator_of_an_endpoint_is_found(stacked: Service, name: str) -> None:
    assert stacked.post("failed-login", name=name).status_code == 401
    assert stacked.kept(name) == [name]


@pytest.mark.parametrize("status", [404, 503])
def test_L2_any_other_status_is_rolled_back(stacked: Service, name: str, status: int) -> None:
    assert stacked.post("write", name=name, status=status).status_code == status
    assert stacked.kept(name) == []
    assert stacked.told(name) == ["settled rolled_back", "background"]


@pytest.mark.parametrize("kind", ["http", "mapped"])
def test_L3_a_mapped_exception_is_rolled_back(stacked: Service, name: str, kind: str) -> None:
    assert stacked.post("raises", name=name, kind=kind, status=409).status_code == 409
    assert stacked.kept(name) == []
    assert stacked.told(name) == ["settled rolled_back"]


def test_L4_any_other_exception_is_a_500_and_nothing_is_kept(stacked: Service, name: str) -> None:
    assert stacked.post("raises", name=name, kind="crash").status_code == 500
    assert stacked.kept(name) == []
    assert stacked.told(name) == ["settled rolled_back"]


REFUSALS = [("commit-refused", "foreign-key-violation"), ("flush-refused", "unique-violation")]


@pytest.mark.parametrize(("case", "kind"), REFUSALS)
def test_L5_a_refused_commit_is_answered_by_a_problem_document(
    stacked: Service, name: str, case: str, kind: str
) -> None:
    assert problem(stacked.post(case, name=name)) == (409, kind)
    assert stacked.kept(name) == []
    assert stacked.told(name) == ["settled rolled_back"]


@pytest.mark.parametrize("case", [case for case, _ in REFUSALS])
def test_L5_the_apps_own_handler_answers_if_there_is_one(handled: Service, name: str, case: str) -> None:
    answer = handled.post(case, name=name)
    assert (answer.status_code, answer.json()) == (418, {"own": "IntegrityError"})
    assert handled.kept(name) == []


@pytest.mark.parametrize("case", [case for case, _ in REFUSALS])
def test_L5_a_refused_commit_has_one_answer(stacked: Service, name: str, case: str) -> None:
    received = stacked.send("POST", case, name=name).read_until_closed()
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.startswith(b"HTTP/1.1 409 ")


def test_L9_a_swallowed_error_makes_a_success_a_500(stacked: Service, name: str) -> None:
    assert problem(stacked.post("swallows", name=name, how="statement")) == (500, "unit-doomed")
    assert stacked.kept(name) == []
    assert stacked.told(name) == ["settled rolled_back"]


def test_L9_an_error_contained_in_a_savepoint_dooms_nothing(stacked: Service, name: str) -> None:
    assert stacked.post("contains", name=name, how="statement").status_code == 201
    assert stacked.kept(name) == [name, f"{name}-later"]


def test_L10_a_dry_run_keeps_nothing(stacked: Service, name: str) -> None:
    assert stacked.post("dry-run", name=name).status_code == 201
    assert stacked.kept(name) == []


def test_L11_settling_is_refused(stacked: Service, name: str) -> None:
    assert problem(stacked.post("settles", name=name, how="commit")) == (500, "settle-refused")
    assert stacked.kept(name) == []


@pytest.mark.parametrize("way", ["task", "scope"])
def test_L12_cancelled_before_commit_it_is_rolled_back(stacked: Service, name: str, way: str) -> None:
    sent = stacked.send("POST", "stands", name=name)
    stacked.wait_until_told(name, "standing")
    stacked.cancel(name, way)
    if stacked.mode == "sync":
        stacked.release(name)  # nobody can stop a thread
    assert not sent.read_until_closed().startswith(b"HTTP/1.1 2")
    assert stacked.told(name) == ["standing", "settled rolled_back"]
    assert stacked.kept(name) == []


# What a BaseHTTPMiddleware around ours makes of it, and of a cut stream, is in test_theirs.
@pytest.mark.parametrize("stacked", [stack for stack in STACKS if stack != "theirs-outside"], indirect=True)
@pytest.mark.parametrize("way", ["task", "scope"])
def test_L13_cancelled_during_commit_it_is_committed(stacked: Service, name: str, way: str) -> None:
    with hold_commits(stacked.backend, "items") as hold:
        sent = stacked.send("POST", "write", name=name, body=True)
        hold.wait_until_waiting()
        stacked.cancel(name, way)
        assert hold.waiting() == 1
        assert not sent.arrived()
        hold.release()
        received = sent.read_until_closed()
    assert stacked.told(name)[:2] == ["settled committed", "on_commit"]
    assert stacked.kept(name) == [name]
    assert b"HTTP/1.1 500" not in received
    assert not received.endswith(b"written")


def test_L14_a_client_that_leaves_during_commit_changes_nothing(stacked: Service, name: str) -> None:
    with hold_commits(stacked.backend, "items") as hold:
        sent = stacked.send("POST", "write", name=name)
        hold.wait_until_waiting()
        sent.reset()
        hold.release()
    assert stacked.told(name)[:2] == ["settled committed", "on_commit"]
    assert stacked.kept(name) == [name]


HOWS = ["cursor", "cursor of the handler", "one by one"]


@pytest.mark.parametrize("how", HOWS)
def test_L15_a_unit_that_reads_stays_open_to_the_last_byte(stacked: Service, name: str, how: str) -> None:
    rows = [f"{name}-{number}" for number in ROWS]
    stacked.add_items(*rows)
    sent = begin(stacked, "GET", "stream", name, how=how)
    assert stacked.seen()["checked_out"] == 1
    stacked.release(name)
    answer = sent.answer()
    assert answer is not None
    assert (answer.status, answer.body.decode().split()) == (200, rows)
    assert stacked.told(name) == ["paused", "generator ended", "settled committed", "background"]


@pytest.mark.parametrize("how", HOWS)
def test_L15_a_client_that_leaves_in_the_middle_leaks_nothing(stacked: Service, name: str, how: str) -> None:
    stacked.add_items(*(f"{name}-{number}" for number in ROWS))
    sent = begin(stacked, "GET", "stream", name, how=how)
    sent.reset()
    if stacked.mode == "sync":
        stacked.release(name)
    stacked.wait_until_told(name, "settled ")
    stacked.is_at_rest()


NOT_THEIRS = [stack for stack in STACKS if not stack.startswith("theirs")]


@pytest.mark.parametrize("stacked", NOT_THEIRS, indirect=True)
@pytest.mark.parametrize("how", HOWS)
def test_L15_and_L27_a_stream_that_fails_in_the_middle_is_cut(stacked: Service, name: str, how: str) -> None:
    stacked.add_items(*(f"{name}-{number}" for number in ROWS))
    sent = begin(stacked, "GET", "stream", name, how=how, end="raises")
    stacked.release(name)
    received = sent.read_until_closed()
    assert received.startswith(b"HTTP/1.1 200 ")
    assert not received.endswith(LAST_CHUNK)
    assert "settled rolled_back" in stacked.told(name)


def test_L16_a_unit_that_writes_is_committed_before_the_first_byte(stacked: Service, name: str) -> None:
    sent = begin(stacked, "POST", "stream-after-writing", name)
    assert stacked.kept(name) == [name]
    assert stacked.seen()["checked_out"] == 0
    stacked.release(name)
    answer = sent.answer()
    assert answer is not None
    assert answer.body == b"first\nlast\n"
    told = stacked.told(name)
    assert told[:2] == ["settled committed", "paused"]
    if stacked.stack == "theirs-inside":  # which may begin the one while the other runs
        told[2:] = sorted(told[2:], reverse=True)
    assert told[2:] == ["on_commit", "background"]


@pytest.mark.parametrize("stacked", NOT_THEIRS, indirect=True)
@pytest.mark.parametrize("how", ["execute", "current_session", "raises"])
def test_L16_and_L27_a_generator_that_fails_is_cut_and_undoes_nothing(
    stacked: Service, name: str, how: str
) -> None:
    sent = begin(stacked, "POST", "stream-after-writing", name, how=how)
    stacked.release(name)
    received = sent.read_until_closed()
    assert received.startswith(b"HTTP/1.1 201 ")
    assert not received.endswith(LAST_CHUNK)
    told = stacked.told(name)
    assert how == "raises" or told[2].startswith(f"{how}: UnitOfWorkClosed: ")
    assert told.count("on_commit") == 1
    assert stacked.kept(name) == [name]


def test_L17_a_background_task_has_no_unit(stacked: Service, name: str) -> None:
    assert stacked.post("background", name=name, task="session").status_code == 201
    told = stacked.told(name)
    assert told[:2] == COMMITTED[:2]
    assert told[2].startswith("current_session: NoUnitOfWork: ")


def test_L17_a_background_task_uses_new_unit(stacked: Service, name: str) -> None:
    assert stacked.post("background", name=name, task="new_unit").status_code == 201
    assert stacked.told(name) == [*COMMITTED[:2], "new_unit committed", "background"]
    assert stacked.kept(name) == [name, f"{name}-background"]


def test_L17_a_background_task_that_fails_undoes_nothing(stacked: Service, name: str) -> None:
    assert stacked.post("background", name=name, task="fails").status_code == 201
    assert stacked.told(name) == COMMITTED[:2]
    assert stacked.kept(name) == [name]


@pytest.mark.parametrize(
    ("method", "case", "status"),
    [("GET", "health", 200), ("GET", "no-such-route", 404), ("POST", "health", 405)],
)
def test_L20_nothing_is_opened_where_no_session_is_asked_for(
    stacked: Service, method: str, case: str, status: int
) -> None:
    before = stacked.seen()
    assert stacked.request(method, case).status_code == status
    stacked.wait_until_through()
    after = stacked.seen()
    for what in ("connect", "checkout", "begin", "statements"):
        assert after.get(what, 0) == before.get(what, 0), what


@pytest.mark.parametrize("stacked", ["mounted-with-ours"], indirect=True)
def test_L21_code_around_a_mounted_app_has_no_unit(stacked: Service, name: str) -> None:
    assert stacked.get("outside", name=name).status_code == 200
    (told,) = stacked.told(name)
    assert told.startswith("current_session: NoUnitOfWork: ")


def test_L25_a_get_that_writes_is_refused_unless_it_says_so(stacked: Service, name: str) -> None:
    assert problem(stacked.get("reads", name=name, how="orm")) == (500, "read-only-unit")
    assert stacked.kept(name) == []
    assert stacked.get("may-write", name=name, how="orm").status_code == 200
    assert stacked.kept(name) == [name]
