"""L6: the later attempts of requests that met do not meet again, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from tests.support.asgi import AsgiCall, Recorder, run_asgi
from tests.support.backends import Backend
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.retries import serialization_failure
from tests.uow.units import elsewhere, in_thread
from uow import Database, UnitOfWorkMiddleware, current_session, current_sync_session, current_unit
from uow.retry import Retry

pytestmark = pytest.mark.backends("pg18")

Inside = Callable[[str, int], Any]
TWO = Retry(attempts=2, first_pause=0.0, seconds=LIMIT)


class Lanes:
    """An app whose requests named in `fail` fail until attempt `good`; `inside` is what they do meanwhile."""

    def __init__(
        self, database: Database, retry: Retry, *, fail: set[str], inside: Inside, good: int = 2
    ) -> None:
        self.fail = fail
        self.good = good
        self.inside = inside
        self.order: list[str] = []
        self.middleware = UnitOfWorkMiddleware(self.app, database=database, retry=retry)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"].removeprefix("/")
        attempt = current_unit().attempt
        self.order.append(f"{name}{attempt}")
        await self.inside(name, attempt)
        if name in self.fail and attempt < self.good:
            await current_session().run_sync(serialization_failure)
        await JSONResponse(attempt)(scope, receive, send)

    def call(self, name: str, method: str = "POST") -> AsgiCall:
        return AsgiCall(self.middleware, method, f"/{name}")

    def ask(self, name: str, method: str = "POST") -> asyncio.Task[Recorder]:
        return elsewhere(self.call(name, method).run())

    @property
    def lane(self) -> Any:
        """Where they wait for each other; None while nobody is there."""
        in_turn: Any = self.middleware.app
        return next(iter(in_turn._lanes.values()), None)


async def give_others_a_chance() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_L6_the_first_attempts_run_at_once_and_the_later_ones_one_at_a_time(
    backend: Backend, database: Database
) -> None:
    meeting = asyncio.Barrier(5)
    now: list[int] = []
    most: dict[int, int] = {}

    async def inside(_: str, attempt: int) -> None:
        now.append(attempt)
        most[attempt] = max(most.get(attempt, 0), len(now))
        if attempt == 1:
            await meeting.wait()
        await give_others_a_chance()
        now.remove(attempt)

    retry = Retry(first_pause=0.0, seconds=LIMIT)
    lanes = Lanes(database, retry, fail=set("01234"), good=3, inside=inside)
    answers = await asyncio.gather(*(lanes.ask(str(number)) for number in range(5)))

    assert [answer.json() for answer in answers] == [3] * 5
    assert most[1] == 5
    assert most[3] == 1
    assert lanes.lane is None


async def test_L6_the_last_attempt_is_alone(backend: Backend, database: Database) -> None:
    """It waits until those that are inside have ended, and who comes meanwhile waits for it.

    Who only reads meets nobody, and waits for nobody.
    """
    going_on = asyncio.Event()
    events: list[str] = []

    async def inside(name: str, attempt: int) -> None:
        if name == "first":
            await going_on.wait()
        await give_others_a_chance()
        events.append(f"{name}{attempt} ends")

    lanes = Lanes(database, TWO, fail={"last"}, inside=inside)
    first = lanes.ask("first")
    await wait_until_async(lambda: lanes.order == ["first1"], "the first is inside")
    last = lanes.ask("last")
    await wait_until_async(lambda: bool(lanes.lane._is_closed), "the last attempt waits")
    late = lanes.ask("late")
    assert (await lanes.ask("reads", "GET")).json() == 1
    await give_others_a_chance()
    assert lanes.order == ["first1", "last1", "reads1"]
    going_on.set()

    assert [answer.json() for answer in await asyncio.gather(first, last, late)] == [1, 2, 1]
    assert lanes.order[3:] == ["last2", "late1"]
    assert events == ["last1 ends", "reads1 ends", "first1 ends", "last2 ends", "late1 ends"]
    assert lanes.lane is None


@pytest.mark.parametrize("attempts", [2, 3], ids=["in its last attempt", "in a later attempt"])
async def test_L6_a_handler_that_calls_its_own_path_waits_for_itself_not_for_ever(
    backend: Backend, database: Database, attempts: int
) -> None:
    inner: list[Recorder] = []

    async def inside(name: str, attempt: int) -> None:
        if (name, attempt) == ("outer", 2):
            inner.append(await lanes.call("inner").run())

    retry = Retry(attempts=attempts, first_pause=0.0, seconds=0.02)
    lanes = Lanes(database, retry, fail={"outer", "inner"}, inside=inside)
    answer = await lanes.call("outer").run()

    assert (answer.json(), inner[0].json()) == (2, 2)
    assert lanes.order == ["outer1", "outer2", "inner1", "inner2"]
    assert lanes.lane is None


async def test_L12_a_request_that_is_cancelled_while_it_waits_leaves_the_lane_free(
    backend: Backend, database: Database
) -> None:
    """Somebody else keeps the lane in use; who comes afterwards must not wait for the one that left."""
    going_on = asyncio.Event()

    async def inside(name: str, attempt: int) -> None:
        if name == "first":
            await going_on.wait()

    lanes = Lanes(database, TWO, fail={"cancelled", "waits too", "next"}, inside=inside)
    first = lanes.ask("first")
    await wait_until_async(lambda: lanes.order == ["first1"], "the first is inside")
    cancelled = lanes.ask("cancelled")
    await wait_until_async(lambda: bool(lanes.lane._is_closed), "the last attempt waits for all others")
    behind = lanes.ask("behind")
    await wait_until_async(lambda: lanes.lane.users == 3, "another one waits for it")
    cancelled.cancel()
    await asyncio.wait({cancelled})

    assert (await behind).json() == 1
    again = lanes.ask("next")
    await wait_until_async(lambda: bool(lanes.lane._is_closed), "it may be the last as well")
    going_on.set()
    assert [answer.json() for answer in await asyncio.gather(first, again)] == [1, 2]
    assert cancelled.cancelled()
    assert lanes.lane is None


async def test_L6_a_request_without_a_unit_is_run_once(database: Database) -> None:
    """L20: nothing was asked of the database, so nothing that fails is its failure."""
    runs: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        runs.append(1)
        raise DBAPIError("SELECT 1", {}, LookupError("of another database"))

    middleware = UnitOfWorkMiddleware(app, database=database, retry=Retry())
    in_turn: Any = middleware.app

    answer = await run_asgi(middleware, "POST", "/elsewhere")

    assert (answer.status, runs, in_turn._lanes) == (500, [1], {})


@pytest.mark.parametrize("attempts", [2, 3], ids=["in their last attempts", "in later attempts"])
async def test_L6_requests_of_two_event_loops_share_no_lane(
    backend: Backend, database: Database, attempts: int
) -> None:
    """Two threads serve one app: in each they take turns, and neither waits for the other's loop."""
    both_inside = threading.Barrier(2, timeout=LIMIT)
    seen: list[list[int]] = []

    def lose() -> None:
        serialization_failure(current_sync_session())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meeting, now, most = loops[asyncio.get_running_loop()]
        attempt = current_unit().attempt
        if attempt == 1:
            await meeting.wait()
            await in_thread(lose)
        now.append(attempt)
        most.append(len(now))
        if len(most) == 1:
            await in_thread(both_inside.wait)
        await give_others_a_chance()
        now.remove(attempt)
        await JSONResponse(attempt)(scope, receive, send)

    async def three() -> list[tuple[int | None, bytes]]:
        most: list[int] = []
        loops[asyncio.get_running_loop()] = (asyncio.Barrier(3), [], most)
        answers = await asyncio.gather(*(run_asgi(middleware, "POST", f"/{number}") for number in range(3)))
        seen.append(most)
        return [(answer.status, answer.body) for answer in answers]

    loops: dict[asyncio.AbstractEventLoop, tuple[asyncio.Barrier, list[int], list[int]]] = {}
    retry = Retry(attempts=attempts, first_pause=0.0, seconds=LIMIT)
    middleware = UnitOfWorkMiddleware(app, database=database, retry=retry)
    in_turn: Any = middleware.app
    told = await asyncio.gather(*(asyncio.to_thread(asyncio.run, three()) for _ in range(2)))

    assert told == [[(200, b"2")] * 3] * 2
    assert seen == [[1, 1, 1]] * 2
    assert in_turn._lanes == {}


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({"attempts": 0}, "attempts=0: a request has at least one attempt"),
        ({"seconds": -1.0}, r"seconds=-1\.0 is below 0"),
        ({"first_pause": -0.1}, r"first_pause=-0\.1 is below 0"),
        ({"longest_pause": -2}, "longest_pause=-2 is below 0"),
        ({"body_limit": -1}, "body_limit=-1 is below 0"),
    ],
)
def test_a_bound_that_is_none_is_refused(bound: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retry(**bound)


def test_the_pauses_are_random_twice_as_long_each_time_and_bounded() -> None:
    retry = Retry(first_pause=0.25, longest_pause=1.5)
    bounds = [0.25, 0.5, 1.0, 1.5, 1.5]

    for attempt, bound in enumerate(bounds, start=1):
        pauses = {retry.pause(attempt) for _ in range(200)}
        assert len(pauses) > 100
        assert 0 <= min(pauses) < bound / 4  # each is outside of one part in 10^25
        assert bound * 3 / 4 < max(pauses) <= bound
    assert Retry(first_pause=0.0).pause(100_000) == 0.0
    assert 0 <= Retry().pause(100_000) <= 1.0
