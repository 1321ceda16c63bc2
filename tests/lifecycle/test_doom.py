"""L9: a unit of which the database has refused a statement cannot become a success."""

import pytest

from tests.lifecycle.service import Service, problem
from tests.support.variant import retry_of_this_run

HOWS = ["statement", "flush", "missing table"]


@pytest.mark.parametrize("how", HOWS)
def test_L9_a_swallowed_error_makes_a_success_a_500(service: Service, name: str, how: str) -> None:
    answer = service.post("swallows", name=name, how=how)
    assert problem(answer) == (500, "unit-doomed")
    assert answer.json()["outcome"] == "rolled_back"
    assert service.mode in answer.json()["detail"]  # it names the route
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]  # no background task of the refused answer


@pytest.mark.parametrize("how", HOWS)
def test_L9_the_answer_stands_if_it_is_no_success(service: Service, name: str, how: str) -> None:
    answer = service.post("swallows", name=name, how=how, status=409)
    assert (answer.status_code, answer.content) == (409, b"")
    assert service.kept(name) == []


@pytest.mark.parametrize("how", HOWS)
def test_L9_an_error_that_commit_on_would_keep_is_doomed_as_well(
    service: Service, name: str, how: str
) -> None:
    assert problem(service.post("swallows", name=name, how=how, status=402)) == (500, "unit-doomed")
    assert service.kept(name) == []


def test_L9_a_reader_is_doomed_alike(service: Service) -> None:
    assert problem(service.get("swallows-reading")) == (500, "unit-doomed")


@pytest.mark.parametrize("how", HOWS)
def test_L9_an_error_contained_in_a_savepoint_dooms_nothing(service: Service, name: str, how: str) -> None:
    assert service.post("contains", name=name, how=how).status_code == 201
    assert service.kept(name) == [name, f"{name}-later"]
    assert service.told(name) == ["settled committed", "on_commit", "background"]


@pytest.mark.parametrize("case", ["contains", "swallows"])
def test_L9_no_savepoint_contains_what_cost_the_transaction(service: Service, name: str, case: str) -> None:
    answer = service.post(case, name=name, how="fatal")
    lost = (503, "connection-lost") if service.backend.dialect == "postgresql" else (500, "unit-doomed")
    assert problem(answer) == lost
    assert service.kept(name) == []
    again = retry_of_this_run() if lost[1] == "connection-lost" else None
    assert service.told(name) == ["settled rolled_back"] * (again.attempts if again else 1)
    assert service.post("write", name=name).status_code == 201


@pytest.mark.parametrize("how", ["statement", "missing table"])
def test_L9_one_swallowed_inside_a_savepoint_is_raised_again_at_its_release(
    service: Service, name: str, how: str
) -> None:
    answer = service.post("swallows-inside", name=name, how=how, contained=False)
    expected = (409, "unique-violation") if how == "statement" else (500, "database-error")
    assert problem(answer) == expected
    assert service.kept(name) == []
    assert service.told(name) == ["swallowed", "raised again", "settled rolled_back"]


@pytest.mark.parametrize("how", ["statement", "missing table"])
def test_L9_it_undoes_the_savepoint_only_if_it_is_contained_there(
    service: Service, name: str, how: str
) -> None:
    assert service.post("swallows-inside", name=name, how=how, contained=True).status_code == 201
    assert service.kept(name) == [name]
    told = ["swallowed", "raised again", "settled committed", "on_commit", "background"]
    assert service.told(name) == told


def test_L9_a_flush_that_fails_inside_a_savepoint_is_no_success_of_it(service: Service, name: str) -> None:
    service.post("swallows-inside", name=name, how="flush", contained=True)
    assert f"{name}-inner" not in service.kept(name)
    assert service.told(name)[0] == "swallowed"
