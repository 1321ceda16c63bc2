"""How a request ends: what the client reads is what the database has."""

from typing import Any

import pytest

from tests.lifecycle.service import Service, problem
from tests.support.hold import hold_commits
from tests.support.server import UvicornServer

COMMITTED = ["settled committed", "on_commit", "background"]
A_MOMENT = 0.3  # seconds in which an answer that does not wait for COMMIT would be here many times over


@pytest.mark.parametrize("status", [200, 201, 204, 302, 303])
def test_L1_a_2xx_or_3xx_is_committed(service: Service, name: str, status: int) -> None:
    assert service.post("write", name=name, status=status).status_code == status
    assert service.kept(name) == [name]
    assert service.told(name) == COMMITTED


def test_L1_no_byte_leaves_before_the_database_has_acknowledged_commit(service: Service, name: str) -> None:
    with hold_commits(service.backend, "items") as hold:
        sent = service.send("POST", "write", name=name)
        hold.wait_until_waiting()
        assert not sent.arrived(within=A_MOMENT)
        assert service.kept(name) == []
        assert service.seen(name)["told"] == []
        hold.release()
        answer = sent.answer()
    assert answer is not None
    assert answer.status == 201
    assert service.kept(name) == [name]


@pytest.mark.parametrize(
    ("case", "params"),
    [
        ("write", {"status": 402}),
        ("raises", {"kind": "http", "status": 402}),
        ("failed-login", {"status": 401}),
        ("raises", {"kind": "mapped", "status": 202}),
    ],
    ids=["returned 402", "raised 402", "401 of the route", "mapped to 202"],
)
def test_L1_what_commit_on_names_and_what_is_mapped_to_2xx_is_committed(
    service: Service, name: str, case: str, params: dict[str, Any]
) -> None:
    assert service.post(case, name=name, **params).status_code == params["status"]
    assert service.kept(name) == [name]
    assert service.told(name)[:2] == COMMITTED[:2]


def test_L1_the_commit_on_of_a_route_stands_instead_of_the_apps(service: Service, name: str) -> None:
    assert service.post("failed-login", name=name, status=402).status_code == 402
    assert service.kept(name) == []


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 500, 503, 599])
def test_L2_any_other_status_is_rolled_back(service: Service, name: str, status: int) -> None:
    assert service.post("write", name=name, status=status).status_code == status
    assert service.kept(name) == []
    # The background task is the app's own: it belongs to the answer that the app gave.
    assert service.told(name) == ["settled rolled_back", "background"]


@pytest.mark.parametrize("kind", ["http", "mapped"])
@pytest.mark.parametrize("status", [400, 409, 503])
def test_L3_a_mapped_exception_is_rolled_back(service: Service, name: str, kind: str, status: int) -> None:
    assert service.post("raises", name=name, kind=kind, status=status).status_code == status
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]


def test_L4_any_other_exception_is_a_500_and_nothing_is_kept(service: Service, name: str) -> None:
    log = len(service.server.log())
    assert service.post("raises", name=name, kind="crash").status_code == 500
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]
    assert "PurposelyFailed" in service.new_log(log)


def test_L4_an_answer_that_fails_its_validation_is_a_500_and_nothing_is_kept(
    service: Service, name: str
) -> None:
    assert service.post("invalid-answer", name=name).status_code == 500
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]


REFUSALS = [
    ("commit-refused", "foreign-key-violation"),
    ("flush-refused", "unique-violation"),
    ("flush-refused-early", "unique-violation"),
]


@pytest.mark.parametrize(("case", "kind"), REFUSALS)
def test_L5_a_refused_commit_is_answered_by_a_problem_document(
    service: Service, name: str, case: str, kind: str
) -> None:
    log = len(service.server.log())
    answer = service.post(case, name=name)
    assert problem(answer) == (409, kind)
    assert answer.json()["outcome"] == "rolled_back"
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]  # neither a callback nor the background task
    logged = service.new_log(log)
    assert "Traceback" in logged
    assert "IntegrityError" in logged


@pytest.mark.parametrize("case", [case for case, _ in REFUSALS])
def test_L5_the_apps_own_handler_answers_if_there_is_one(handled: Service, name: str, case: str) -> None:
    answer = handled.post(case, name=name)
    assert (answer.status_code, answer.json()) == (418, {"own": "IntegrityError"})
    assert handled.kept(name) == []
    assert handled.told(name) == ["settled rolled_back"]


@pytest.mark.parametrize("case", [case for case, _ in REFUSALS])
def test_L5_a_handler_cannot_call_a_success_what_was_not_kept(handled: Service, name: str, case: str) -> None:
    answer = handled.post(case, name=name, handled=200)
    assert answer.status_code >= 400
    problem(answer)
    assert handled.kept(name) == []
    assert handled.told(name) == ["settled rolled_back"]


@pytest.mark.parametrize("prefix", ["", "/plain-handled"])
@pytest.mark.parametrize("case", [case for case, _ in REFUSALS])
def test_L5_a_refused_commit_has_one_answer(
    service: Service, server: UvicornServer, name: str, case: str, prefix: str
) -> None:
    sent = server.raw().request("POST", f"{prefix}{service.path(case)}?name={name}")
    received = sent.read_until_closed()
    assert received.count(b"HTTP/1.1 ") == 1
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert received.split()[1] in (b"409", b"418")


def test_L10_a_dry_run_keeps_nothing_and_its_answer_stands(service: Service, name: str) -> None:
    assert service.post("dry-run", name=name).status_code == 201
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back", "background"]


@pytest.mark.promise("clean connections")
@pytest.mark.parametrize(
    ("case", "params"),
    [
        ("write", {"status": 409}),
        ("raises", {"kind": "crash"}),
        ("invalid-answer", {}),
        ("commit-refused", {}),
        ("flush-refused", {}),
        ("flush-refused-early", {}),
        ("dry-run", {}),
        ("swallows", {"how": "statement"}),
        ("swallows", {"how": "flush"}),
        ("swallows-inside", {"how": "statement", "contained": False}),
        ("settles", {"how": "commit"}),
        ("settles", {"how": "connection.commit"}),
        ("settles", {"how": "ROLLBACK"}),
        ("rolls-back", {"status": 409}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())) or "x",
)
def test_a_unit_that_is_not_committed_leaves_its_connection_clean(
    service: Service, name: str, case: str, params: dict[str, Any]
) -> None:
    assert service.post("write", name=f"{name}-before").status_code == 201
    before = service.seen()
    service.post(case, name=name, **params)
    assert service.post("write", name=f"{name}-after").status_code == 201
    after = service.seen()
    assert after["connect"] == before["connect"]  # it was the same one connection
    assert after["checkout"] == before["checkout"] + 2
    assert service.kept(name) == [f"{name}-after", f"{name}-before"]
