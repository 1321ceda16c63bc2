"""L25: what is meant to read cannot write, and the database itself sees to it."""

import pytest

from tests.lifecycle.service import Service, problem

HOWS = ["orm", "raw", "forgotten", "nested"]


@pytest.mark.parametrize("how", HOWS)
def test_L25_a_get_that_writes_is_refused(service: Service, name: str, how: str) -> None:
    answer = service.get("reads", name=name, how=how)
    assert problem(answer) == (500, "read-only-unit")
    detail = answer.json()["detail"]
    assert f"GET /{service.mode}/reads" in detail
    assert "@unit_options(read_only=False)" in detail
    assert answer.json()["outcome"] == "rolled_back"
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
@pytest.mark.parametrize("how", HOWS)
def test_L25_so_are_head_and_options(service: Service, name: str, method: str, how: str) -> None:
    assert service.request(method, "reads", name=name, how=how).status_code == 500
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]


def test_L25_a_refusal_that_is_swallowed_is_no_success(service: Service, name: str) -> None:
    assert problem(service.get("reads", name=name, how="swallowed")) == (500, "unit-doomed")
    assert service.kept(name) == []
    assert service.told(name) == ["swallowed", "settled rolled_back"]


@pytest.mark.parametrize("how", HOWS)
def test_L25_an_endpoint_that_says_so_may_write(service: Service, name: str, how: str) -> None:
    assert service.get("may-write", name=name, how=how).status_code == 200
    assert service.kept(name) == [name]
    assert service.told(name) == ["settled committed"]


@pytest.mark.parametrize("how", HOWS)
def test_L25_an_endpoint_can_be_held_to_reading(service: Service, name: str, how: str) -> None:
    answer = service.post("may-not-write", name=name, how=how)
    assert problem(answer) == (500, "read-only-unit")
    assert f"POST /{service.mode}/may-not-write" in answer.json()["detail"]
    assert service.kept(name) == []


@pytest.mark.parametrize("how", HOWS)
def test_L25_the_next_reader_works(service: Service, name: str, how: str) -> None:
    service.get("reads", name=name, how=how)
    assert service.get("items", name="seed-1").json() == ["seed-1"]
    assert service.post("write", name=name).status_code == 201
    assert service.get("items", name=name).json() == [name]


def test_L25_who_unlocks_a_reader_unlocks_it_for_nobody_else(service: Service, name: str) -> None:
    service.get("unlocks")
    assert problem(service.get("reads", name=name, how="raw")) == (500, "read-only-unit")
    assert service.kept(name) == []
