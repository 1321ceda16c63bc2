"""What runs once the answer is out, and what outlives its request."""

import pytest

from tests.lifecycle.service import Service
from tests.support.hold import hold_commits
from tests.support.wait import wait_until


@pytest.mark.promise("callbacks")
def test_callbacks_run_once_each_and_in_order_and_a_failing_one_changes_nothing(
    service: Service, name: str
) -> None:
    log = len(service.server.log())
    assert service.post("callbacks", name=name).status_code == 201
    ran = ["on_commit", "second", "fails"]
    awaited = ["awaited"] if service.mode == "async" else ["called"]
    assert service.told(name) == ["settled committed", *ran, *awaited, "last", "background"]
    assert service.kept(name) == [name]
    assert "PurposelyFailed: a callback" in service.new_log(log)


@pytest.mark.promise("callbacks")
def test_callbacks_run_although_the_client_has_gone(service: Service, name: str) -> None:
    with hold_commits(service.backend, "items") as hold:
        sent = service.send("POST", "callbacks", name=name)
        hold.wait_until_waiting()
        sent.reset()
        hold.release()
    service.wait_until_through()
    assert service.told(name)[:3] == ["settled committed", "on_commit", "second"]
    assert service.kept(name) == [name]


@pytest.mark.promise("callbacks")
@pytest.mark.parametrize("status", [400, 409, 500])
def test_no_callback_runs_after_a_rollback(service: Service, name: str, status: int) -> None:
    assert service.post("callbacks", name=name, status=status).status_code == status
    assert service.told(name) == ["settled rolled_back", "background"]


def test_L17_a_background_task_has_no_unit_and_is_told_what_to_write(service: Service, name: str) -> None:
    assert service.post("background", name=name, task="session").status_code == 201
    told = service.told(name)
    assert told[:2] == ["settled committed", "on_commit"]
    assert told[2].startswith("current_session: NoUnitOfWork: ")
    assert "async with new_unit():" in told[2]
    assert len(told) == 3


def test_L17_a_background_task_uses_new_unit(service: Service, name: str) -> None:
    assert service.post("background", name=name, task="new_unit").status_code == 201
    told = ["settled committed", "on_commit", "new_unit committed", "background"]
    assert service.told(name) == told
    assert service.kept(name) == [name, f"{name}-background"]


def test_L17_a_background_task_that_fails_undoes_nothing(service: Service, name: str) -> None:
    log = len(service.server.log())
    assert service.post("background", name=name, task="fails").status_code == 201
    assert service.told(name) == ["settled committed", "on_commit"]
    assert service.kept(name) == [name]
    assert "PurposelyFailed: a background task" in service.new_log(log)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_L18_what_outlives_its_request_is_sealed(service: Service, name: str, method: str) -> None:
    assert service.request(method, "outlives", name=name).status_code == 200
    service.is_at_rest()  # although somebody still has the session and its results
    service.release(name)
    wait_until(lambda: "still readable: seed-1" in service.seen(name)["told"], "the task is through")
    ends = dict(each.split(": ", 1) for each in service.told(name) if each.startswith(tuple(_SEALED)))
    assert set(ends) == set(_SEALED)
    for kind in _SEALED:
        assert ends[kind].startswith(f"UnitOfWorkClosed: {method} /{service.mode}/outlives: "), kind


_SEALED = [
    "execute", "get", "flush", "begin_nested", "commit", "rollback", "add", "result", "scalars", "stream",
]  # fmt: skip


def test_L18_loading_more_and_asking_for_the_session_are_refused_too(service: Service, name: str) -> None:
    assert service.get("outlives", name=name).status_code == 200
    service.wait_until_through()  # a unit that reads ends with the last byte, and this answer has no body
    service.release(name)
    wait_until(lambda: "still readable: seed-1" in service.seen(name)["told"], "the task is through")
    told = service.told(name)
    assert [each for each in told if each.startswith("lazy load: DetachedInstanceError: ")]
    assert [each for each in told if each.startswith("current_session: NoUnitOfWork: ")]


def test_L18_the_next_request_has_the_connection_to_itself(service: Service, name: str) -> None:
    assert service.post("outlives", name=name).status_code == 200
    assert service.post("write", name=f"{name}-next").status_code == 201
    service.release(name)
    wait_until(lambda: "still readable: seed-1" in service.seen(name)["told"], "the task is through")
    assert service.post("write", name=f"{name}-later").status_code == 201
    assert service.kept(name) == [f"{name}-later", f"{name}-next"]
    assert service.backend.idle_in_transaction() == 0
    assert service.backend.write_lock_free()
