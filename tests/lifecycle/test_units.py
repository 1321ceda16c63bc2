"""Which unit code is in, and which of the two kinds of session it has."""

import pytest

from tests.lifecycle.service import Service, problem


@pytest.fixture(scope="module")
def pool_size() -> int:
    """A unit inside a unit needs a connection of its own."""
    return 2


def test_L23_an_endpoint_and_its_dependencies_share_one_unit(service: Service, name: str) -> None:
    answer = service.post("one-unit", name=name)
    assert (answer.status_code, answer.json()) == (201, {"same": True})
    assert service.kept(name) == [name]
    assert service.told(name) == ["settled committed", "on_commit"]


@pytest.mark.modes("sync")
def test_L23_a_def_endpoint_in_the_thread_pool_has_the_same_unit(service: Service, name: str) -> None:
    # The middleware's unit is settled, although the session was made in another thread.
    assert service.post("write", name=name).status_code == 201
    assert service.post("write", name=f"{name}-no", status=409).status_code == 409
    assert service.kept(name) == [name]


@pytest.mark.parametrize("first", ["own", "other"])
def test_L24_one_unit_has_no_session_of_the_other_kind(service: Service, name: str, first: str) -> None:
    answer = service.post("mixed", name=name, first=first)
    assert problem(answer) == (500, "mixed-sessions")
    detail = answer.json()["detail"]
    assert f"POST /{service.mode}/mixed" in detail
    async_first = (service.mode == "async") is (first == "own")
    assert f"Write {'current_session()' if async_first else 'current_sync_session()'} throughout" in detail
    assert service.kept(name) == []
    assert service.told(name) == ["settled rolled_back"]


@pytest.mark.promise("units inside units")
def test_new_unit_keeps_an_audit_row_of_a_401(service: Service, name: str) -> None:
    assert service.post("audit", name=name).status_code == 401
    assert service.kept(name) == [f"{name}-audit"]
    assert service.told(name) == ["new_unit committed", "audited", "settled rolled_back"]


@pytest.mark.promise("units inside units")
@pytest.mark.backends("pg18", "pgsystem")
@pytest.mark.parametrize(("status", "kept"), [(401, ["-audit"]), (201, ["", "-audit"])])
def test_new_unit_inside_a_writing_unit_is_independent_of_it(
    service: Service, name: str, status: int, kept: list[str]
) -> None:
    assert service.post("audit-inside", name=name, status=status).status_code == status
    assert service.kept(name) == [f"{name}{suffix}" for suffix in kept]


@pytest.mark.promise("units inside units")
@pytest.mark.backends("sqlite")
def test_new_unit_inside_a_writing_unit_is_refused_on_sqlite(service: Service, name: str) -> None:
    answer = service.post("audit-inside", name=name, status=201)
    assert problem(answer) == (500, "would-deadlock")
    assert f"POST /{service.mode}/audit-inside" in answer.json()["detail"]
    assert "the audit" in answer.json()["detail"]
    assert service.kept(name) == []
    assert service.told(name) == ["new_unit rolled_back", "settled rolled_back"]


@pytest.mark.promise("units inside units")
def test_new_unit_may_read_inside_a_writing_unit_and_does_not_see_its_work(
    service: Service, name: str
) -> None:
    answer = service.post("reads-inside", name=name)
    assert (answer.status_code, answer.json()) == (201, {"seen": 0})
    assert service.kept(name) == [name]


@pytest.mark.promise("units inside units")
def test_new_unit_that_fails_is_undone_alone(service: Service, name: str) -> None:
    assert service.post("undone-inside", name=name).status_code == 201
    assert service.kept(name) == [name]
    assert service.told(f"{name}-undone") == []
    told = ["new_unit rolled_back", "settled committed", "on_commit", "background"]
    assert service.told(name) == told
