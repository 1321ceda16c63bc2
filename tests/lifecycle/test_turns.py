"""L22: tasks and threads that share the one session of their unit."""

import pytest

from tests.lifecycle.model import ROWS
from tests.lifecycle.service import Service, problem


def rows(name: str) -> list[str]:
    return [f"{name}-{number}" for number in ROWS]


@pytest.mark.modes("async")
@pytest.mark.parametrize(
    ("how", "suffixes", "told"),
    [
        ("statements", [f"-{number}" for number in ROWS], []),
        ("inside a savepoint", [f"-{number}" for number in ROWS], []),
        ("inside an undone savepoint", [""], []),
        ("a savepoint beside calls", ["-kept"], ["undone", "beside"]),
        ("two savepoints", ["-kept"], ["undone"]),
        ("reads", [""], ["parts [1, 0, 0]"]),
    ],
)
def test_L22_gathered_calls_take_turns(
    service: Service, name: str, how: str, suffixes: list[str], told: list[str]
) -> None:
    assert service.post("shares", name=name, how=how).status_code == 201
    assert service.kept(name) == [f"{name}{suffix}" for suffix in suffixes]
    assert service.told(name) == [*told, "settled committed", "background"]


@pytest.mark.modes("async")
def test_L22_one_gathered_call_that_fails_undoes_them_all(service: Service, name: str) -> None:
    assert problem(service.post("shares", name=name, how="one fails")) == (409, "unique-violation")
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]


@pytest.mark.modes("async")
@pytest.mark.parametrize(
    ("how", "told"), [("adds", []), ("adds beside a savepoint", ["undone"])], ids=["call", "savepoint"]
)
def test_L22_a_call_that_cannot_wait_is_refused_and_names_both_tasks(
    service: Service, name: str, how: str, told: list[str]
) -> None:
    answer = service.post("shares", name=name, how=how)
    assert problem(answer) == (500, "concurrent-use")
    detail = answer.json()["detail"]
    assert f"POST /{service.mode}/shares" in detail
    assert "task-1" in detail
    assert "task-2" in detail
    assert service.kept(name) == []
    assert service.told(name) == [*told, "settled rolled_back"]


@pytest.mark.modes("sync")
def test_L22_threads_may_use_the_session_one_after_the_other(service: Service, name: str) -> None:
    assert service.post("shares", name=name, how="in turn").status_code == 201
    assert service.kept(name) == rows(name)


@pytest.mark.modes("sync")
def test_L22_a_second_thread_is_refused_while_the_first_is_inside(service: Service, name: str) -> None:
    answer = service.post("shares", name=name, how="overlapping")
    assert problem(answer) == (500, "concurrent-use")
    detail = answer.json()["detail"]
    assert f"POST /{service.mode}/shares" in detail
    assert "thread-1" in detail
    assert "thread-2" in detail
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]
