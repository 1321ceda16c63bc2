"""Where no session was asked for, and where there is no unit to ask."""

import threading

import pytest

from tests.lifecycle.service import Service
from tests.support.hold import hold_commits
from uow import current_session, current_sync_session, current_unit, errors, new_unit, on_commit

NEEDS_NOTHING = [
    ("GET", "health", 200),
    ("HEAD", "no-such-route", 404),
    ("GET", "no-such-route", 404),
    ("POST", "no-such-route", 404),
    ("POST", "health", 405),
    ("OPTIONS", "write", 405),
    ("POST", "write", 422),  # its `name` is missing
]


@pytest.mark.parametrize(("method", "case", "status"), NEEDS_NOTHING)
def test_L20_nothing_is_opened_where_no_session_is_asked_for(
    service: Service, method: str, case: str, status: int
) -> None:
    before = service.seen()
    assert service.request(method, case).status_code == status
    service.wait_until_through()
    after = service.seen()
    for what in ("connect", "checkout", "begin", "statements"):
        assert after.get(what, 0) == before.get(what, 0), what


def test_L20_such_requests_are_answered_while_others_hold_the_whole_pool(service: Service, name: str) -> None:
    with hold_commits(service.backend, "items") as hold:
        holds = service.send("POST", "write", name=name)
        hold.wait_until_waiting()
        waits = service.send("POST", "write", name=f"{name}-next")
        for method, case, status in NEEDS_NOTHING:
            assert service.request(method, case).status_code == status
        assert hold.waiting() == service.seen()["checked_out"] == 1  # the pool was empty all the time
        assert not holds.arrived()
        assert not waits.arrived()
        hold.release()
        answers = [holds.answer(), waits.answer()]
    assert [answer and answer.status for answer in answers] == [201, 201]
    assert service.kept(name) == [name, f"{name}-next"]


def test_L21_a_lifespan_has_no_unit(service: Service) -> None:
    told = service.told("lifespan")
    assert told[0].startswith("current_session: NoUnitOfWork: ")
    assert "new_unit()" in told[0]


@pytest.mark.parametrize(
    "ask",
    [current_session, current_sync_session, current_unit, new_unit, lambda: on_commit(print)],
    ids=["current_session", "current_sync_session", "current_unit", "new_unit", "on_commit"],
)
@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_L21_code_outside_any_unit_is_told_what_to_write(ask: object, where: str) -> None:
    caught: list[BaseException] = []

    def repository() -> None:
        assert callable(ask)
        try:
            ask()
        except errors.NoUnitOfWork as error:
            caught.append(error)

    if where == "here":
        repository()
    else:
        thread = threading.Thread(target=repository)
        thread.start()
        thread.join()
    assert len(caught) == 1
    assert "new_unit()" in str(caught[0])
