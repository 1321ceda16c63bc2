"""The harness of the N-th point itself: it counts every point, and it finds bugs that are put in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.faults.judge import violations
from tests.faults.points import Fault, Injected, Points
from tests.faults.rig import exhaust, rig
from tests.support.backends import Backend
from uow import UnitOfWork

RAISE, CANCEL, CANCEL_LATE = Fault("await", "raise"), Fault("await", "cancel"), Fault("await", "cancel late")


class Request:
    """Waits in its own task and in a child, and writes down how far it came."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.result = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        child = asyncio.ensure_future(self.child())
        asyncio.get_running_loop().call_later(0, self.answer)
        self.log.append(await self.result)
        await child

    async def child(self) -> None:
        await asyncio.sleep(0)
        self.log.append("child")

    def answer(self) -> None:
        self.log.append("done")
        if not self.result.done():
            self.result.set_result("result")


async def faulty(fault: Fault, nth: int) -> tuple[Points, Request, asyncio.Task[None]]:
    points, request = Points(fault, nth), Request()
    return points, request, await points.run(request.run())


async def test_each_wait_of_the_request_and_of_its_children_is_a_point() -> None:
    points, request, task = await faulty(RAISE, 0)

    assert task.exception() is None
    assert points.hit is None
    assert sorted(request.log) == ["child", "done", "result"]
    assert points.count == 2


async def test_an_exception_comes_where_the_result_would_be() -> None:
    points, request, task = await faulty(RAISE, 1)

    assert isinstance(task.exception(), Injected)
    assert points.hit == "test_points.Request.run"
    assert "done" in request.log
    assert "result" not in request.log


async def test_an_exception_may_come_in_a_child() -> None:
    points, request, task = await faulty(RAISE, 2)

    assert isinstance(task.exception(), Injected)
    assert points.hit == "tasks.sleep"
    assert "child" not in request.log


@pytest.mark.parametrize(("fault", "answered"), [(CANCEL, False), (CANCEL_LATE, True)])
async def test_a_cancellation_comes_as_the_wait_begins_or_as_it_ends(fault: Fault, answered: bool) -> None:
    _, request, task = await faulty(fault, 1)

    assert task.cancelled()
    assert request.result.cancelled() is not answered
    assert "result" not in request.log


async def test_the_first_task_is_the_one_that_is_cancelled() -> None:
    points, request, task = await faulty(CANCEL, 2)

    assert task.cancelled()
    assert points.hit == "tasks.sleep"
    assert "child" in request.log


# -- bugs that are put in


Settle = Coroutine[Any, Any, None]
settle = UnitOfWork.settle


async def settle_while_the_answer_goes_out(self: UnitOfWork, *, commit: bool) -> None:
    asyncio.get_running_loop().call_soon(asyncio.ensure_future, settle(self, commit=commit))


async def settle_by_committing(self: UnitOfWork, *, commit: bool) -> None:
    await settle(self, commit=True)


async def settle_without_looking(self: UnitOfWork, *, commit: bool) -> None:
    try:
        await settle(self, commit=commit)
    except Exception:
        self.outcome = "committed"


async def settle_and_swallow(self: UnitOfWork, *, commit: bool) -> None:
    try:
        await settle(self, commit=commit)
    except asyncio.CancelledError:
        return


async def finish_without_a_shield(work: Settle, *, seconds: float) -> None:
    await work


SEEDED = [
    ("uow._unit.UnitOfWork.settle", settle_while_the_answer_goes_out, Fault("message", "raise"), "I5:"),
    ("uow._unit.UnitOfWork.settle", settle_by_committing, Fault("message", "raise"), "I2:"),
    ("uow._unit.UnitOfWork.settle", settle_without_looking, Fault("event", "raise"), "I1:"),
    ("uow._unit.UnitOfWork.settle", settle_and_swallow, CANCEL, "the cancellation was swallowed"),
    ("uow._unit.finish", finish_without_a_shield, CANCEL, "a COMMIT was not finished"),
]


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize(("where", "bug", "fault", "told"), SEEDED)
async def test_a_bug_that_is_put_in_is_found(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, where: str, bug: Any, fault: Fault, told: str
) -> None:
    monkeypatch.setattr(where, bug)
    async with rig(backend, "async", "plain") as made:
        _, wrong = await exhaust(made, "rollback" if told == "I2:" else "commit", fault, violations)
        assert any(violation.startswith(told) for violation in wrong), wrong
