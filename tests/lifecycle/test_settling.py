"""L11: handlers do not settle their unit."""

import pytest

from tests.lifecycle.service import Service, problem

SETTLED = ["settled rolled_back"]


@pytest.mark.parametrize(
    "how", ["commit", "begin", "reset", "invalidate", "transaction.commit", "connection.commit"]
)
def test_L11_settling_is_refused_at_the_call(service: Service, name: str, how: str) -> None:
    answer = service.post("settles", name=name, how=how)
    assert problem(answer) == (500, "settle-refused")
    detail = answer.json()["detail"]
    assert f"POST /{service.mode}/settles" in detail
    assert "set_rollback_only()" in detail  # what to write instead
    assert service.kept(name) == []
    assert service.told(name) == SETTLED


@pytest.mark.modes("async")
def test_L11_settling_is_refused_below_run_sync(service: Service, name: str) -> None:
    assert problem(service.post("settles", name=name, how="run_sync.commit")) == (500, "settle-refused")
    assert service.kept(name) == []


def test_L11_an_invalidated_connection_is_no_success(service: Service, name: str) -> None:
    answer = service.post("settles", name=name, how="connection.invalidate")
    assert problem(answer)[0] in (500, 503)
    assert answer.json()["outcome"] == "rolled_back"  # the transaction went with its connection
    assert service.kept(name) == []
    assert service.told(name) == SETTLED
    assert service.post("write", name=name).status_code == 201


@pytest.mark.parametrize("how", ["session", "transaction", "connection"])
def test_L11_rollback_is_done_and_an_error_stands(service: Service, name: str, how: str) -> None:
    answer = service.post("rolls-back", name=name, status=409, how=how)
    assert (answer.status_code, answer.content) == (409, b"")
    assert service.kept(name) == []
    assert service.told(name) == [*SETTLED, "background"]


@pytest.mark.parametrize("how", ["session", "transaction", "connection"])
@pytest.mark.parametrize("status", [201, 302])
def test_L11_rollback_makes_a_success_a_500(service: Service, name: str, how: str, status: int) -> None:
    answer = service.post("rolls-back", name=name, status=status, how=how)
    assert problem(answer) == (500, "unit-doomed")
    assert service.kept(name) == []
    assert service.told(name) == SETTLED


@pytest.mark.parametrize("how", ["session", "transaction", "connection"])
def test_L11_rollback_ends_the_unit_for_later_sql(service: Service, name: str, how: str) -> None:
    answer = service.post("rolls-back", name=name, status=201, how=how, more=True)
    assert problem(answer) == (500, "unit-closed")
    assert f"POST /{service.mode}/rolls-back" in answer.json()["detail"]
    assert service.kept(name) == []
    assert service.told(name) == SETTLED


@pytest.mark.parametrize("how", ["close", "block"])
def test_L11_close_does_nothing(service: Service, name: str, how: str) -> None:
    assert service.post("closes", name=name, how=how).status_code == 201
    assert service.kept(name) == [name, f"{name}-later"]
    assert service.told(name) == ["settled committed", "on_commit", "background"]


@pytest.mark.parametrize("how", ["session", "transaction"])
def test_L11_rollback_before_the_first_sql_counts_as_well(service: Service, name: str, how: str) -> None:
    answer = service.post("rolls-back", name=name, status=201, how=how, pending=True)
    assert problem(answer) == (500, "unit-doomed")
    assert service.kept(name) == []


def _is_unknown(service: Service, name: str, sql: str, status: int) -> None:
    answer = service.post("settles", name=name, how=sql, status=status)
    assert problem(answer) == (500, "commit-outcome-unknown")
    assert answer.json()["outcome"] == "unknown"
    assert service.told(name) == ["settled unknown"]
    assert len(service.kept(name)) == ("ROLLBACK" not in sql.upper())
    assert service.post("write", name=f"{name}-next").status_code == 201  # the next unit is a clean one


@pytest.mark.parametrize("status", [201, 409])
@pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK"])
def test_L11_settling_by_text_is_found_and_its_outcome_is_unknown(
    service: Service, name: str, sql: str, status: int
) -> None:
    _is_unknown(service, name, sql, status)


@pytest.mark.backends("pg18", "pgsystem")
@pytest.mark.parametrize("status", [201, 409])
@pytest.mark.parametrize("sql", ["commit and chain", "rollback and chain"])
def test_L11_text_that_begins_anew_is_found_as_well(
    service: Service, name: str, sql: str, status: int
) -> None:
    _is_unknown(service, name, sql, status)


@pytest.mark.parametrize("status", [201, 409])
def test_L11_so_is_a_commit_on_the_drivers_own_connection(service: Service, name: str, status: int) -> None:
    _is_unknown(service, name, "driver's COMMIT", status)


def test_L11_a_refused_commit_in_a_connection_block_leaves_nothing_for_the_next_unit(
    service: Service, name: str
) -> None:
    answer = service.post("settles", name=name, how="connection block")
    assert problem(answer) == (500, "settle-refused")
    assert service.post("write", name=f"{name}-next").status_code == 201
    assert service.kept(name) == [f"{name}-next"]


def test_L11_a_transaction_that_was_closed_gives_its_connection_back(service: Service, name: str) -> None:
    answer = service.post("settles", name=name, how="transaction.close")
    assert answer.status_code >= 500
    assert service.post("write", name=f"{name}-next").status_code == 201
    assert service.kept(name) == [f"{name}-next"]
