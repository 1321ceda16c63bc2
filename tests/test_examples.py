"""What `examples/quickstart.py` promises, and what the same app with `Depends(get_db)` does instead.

The second half says what the Depends version does on the FastAPI that the lock file pins (0.165), where
the exit of a dependency with `yield` runs after the answer was sent, unless it says `scope="function"`.
Both apps are real uvicorn processes; what is in the database is looked at through a second connection.
"""

from collections.abc import Iterator

import pytest

from tests.served_examples import Example
from tests.support.hold import hold_commits
from tests.support.server import Serve
from tests.support.wait import wait_until


@pytest.fixture(scope="module")
def serve_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    started = Serve(tmp_path_factory.mktemp("servers"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def served(serve_module: Serve, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Example]:
    folder = tmp_path_factory.mktemp("examples")
    return {name: Example(name, folder / name, serve_module) for name in ("quickstart", "depends")}


@pytest.fixture(params=["quickstart", "depends"])
def either(request: pytest.FixtureRequest, served: dict[str, Example]) -> Example:
    served[request.param].empty()
    return served[request.param]


@pytest.fixture
def quickstart(served: dict[str, Example]) -> Example:
    served["quickstart"].empty()
    return served["quickstart"]


@pytest.fixture
def depends(served: dict[str, Example]) -> Example:
    served["depends"].empty()
    return served["depends"]


def test_items_are_made_and_listed(either: Example) -> None:
    made = either.post("/items/", "pen")
    assert made.status_code == 200
    assert made.json()["name"] == "pen"
    assert either.names() == ["pen"]
    assert either.client.get("/items/").json() == [made.json()]


def test_quickstart_answers_after_commit(quickstart: Example) -> None:
    """L1: no byte of the answer arrives while COMMIT is held."""
    client = quickstart.server.raw()
    with hold_commits(quickstart.backend, "items") as hold:
        client.request("POST", "/items/?name=held")
        hold.wait_until_waiting()
        assert not client.arrived(within=0.5)
    answer = client.answer()
    assert answer is not None
    assert answer.status == 200
    assert quickstart.names() == ["held"]


def test_depends_answers_before_commit(depends: Example) -> None:
    """The client has its 200, and the row is not there; in a crash it would never be."""
    with hold_commits(depends.backend, "items") as hold:
        answer = depends.server.raw().request("POST", "/items/?name=held").answer()
        hold.wait_until_waiting()
        assert answer is not None
        assert answer.status == 200
        assert depends.client.get("/items/").json() == []
        assert depends.backend.count("items") == 0
    assert depends.names() == ["held"]


def test_quickstart_undoes_what_it_answers_with_409(quickstart: Example) -> None:
    """L2."""
    assert quickstart.post("/refused-items/", "too many").status_code == 409
    assert quickstart.names() == []


def test_depends_keeps_what_it_answers_with_409(depends: Example) -> None:
    assert depends.post("/refused-items/", "too many").status_code == 409
    wait_until(lambda: depends.names() == ["too many"], "the commit after the answer")


def test_quickstart_answers_a_refused_commit_with_an_error(quickstart: Example) -> None:
    """L5: one answer, and it is a problem document."""
    answer = quickstart.post("/items/", "refused at commit")
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/foreign-key-violation"
    assert answer.json()["outcome"] == "rolled_back"
    assert quickstart.names() == []


def test_depends_answers_a_refused_commit_with_200(depends: Example) -> None:
    answer = depends.post("/items/", "refused at commit")
    assert answer.status_code == 200
    assert answer.json()["name"] == "refused at commit"
    depends.wait_until_logged("FOREIGN KEY constraint failed")
    assert depends.names() == []


def test_quickstart_answers_a_swallowed_error_with_500(quickstart: Example) -> None:
    """L9."""
    answer = quickstart.post("/twice/", "first")
    assert answer.status_code == 500
    assert answer.json()["type"] == "/problems/unit-doomed"
    assert quickstart.names() == []


def test_depends_answers_a_swallowed_error_with_200_and_keeps_nothing(depends: Example) -> None:
    answer = depends.post("/twice/", "first")
    assert answer.status_code == 200
    assert answer.json() == {"name": "first"}
    depends.wait_until_logged("PendingRollbackError")
    assert depends.names() == []
