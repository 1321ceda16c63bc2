"""L26: the pool stays empty until the wait for a connection is over."""

import pytest

from tests.lifecycle.service import Service, problem
from tests.support.hold import hold_commits


@pytest.fixture(scope="module")
def pool_timeout() -> float:
    """The connection is held until the answer is here, so any time will do."""
    return 0.5


def test_L26_a_write_that_gets_no_connection_is_told_when_to_try_again(service: Service, name: str) -> None:
    with hold_commits(service.backend, "items") as hold:
        holds = service.send("POST", "write", name=name)
        hold.wait_until_waiting()
        before = service.seen()
        answer = service.post("write", name=f"{name}-late")
        after = service.seen()
        assert hold.waiting() == 1
        hold.release()
        first = holds.answer()
    assert problem(answer) == (503, "database-unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["outcome"] == "rolled_back"
    for what in ("begin", "checkout", "connect", "statements"):
        assert after.get(what, 0) == before.get(what, 0), what  # nothing was begun
    assert first is not None
    assert first.status == 201
    assert service.kept(name) == [name]
    assert service.told(f"{name}-late") == ["settled rolled_back"]
    assert service.post("write", name=f"{name}-next").status_code == 201


def test_L26_so_is_a_read(service: Service, name: str) -> None:
    service.add_items(*(f"{name}-{number}" for number in range(1, 6)))
    streams = service.send("GET", "stream", name=name, how="execute")  # which has the only connection
    service.wait_until_told(name, "paused")
    answer = service.get("items", name="seed-1")
    service.release(name)
    assert problem(answer) == (503, "database-unavailable")
    assert int(answer.headers["retry-after"]) > 0
    whole = streams.answer()
    assert whole is not None
    assert whole.body.count(b"\n") == 5
    assert service.get("items", name="seed-1").json() == ["seed-1"]


def test_L26_what_needs_no_connection_is_answered_meanwhile(service: Service, name: str) -> None:
    with hold_commits(service.backend, "items") as hold:
        holds = service.send("POST", "write", name=name)
        hold.wait_until_waiting()
        late = service.send("POST", "write", name=f"{name}-late")
        assert service.get("health").status_code == 200
        refused = late.answer()
        hold.release()
        first = holds.answer()
    assert (refused and refused.status, first and first.status) == (503, 201)
