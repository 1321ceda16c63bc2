"""A request with a key is done once: what is stored, what is given again, and what is never kept."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tests.support.backends import Backend, Mode
from tests.uow.keys import REPLAYED, Counted, both, counting, keyed, make_keys, rows, send
from tests.uow.units import garbage, names
from uow import Database


@pytest.fixture(autouse=True)
def _keys(backend: Backend) -> None:
    make_keys(backend)


async def test_a_repeat_gets_the_answer_of_the_first_and_does_nothing(
    backend: Backend, mode: Mode, database: Database
) -> None:
    work = Counted()
    app = keyed(counting(mode, work), database)

    first = await send(app, json={"n": 1})
    again = await send(app, json={"n": 1})

    assert (first.status, first.json()) == (201, {"run": 1})
    assert (again.status, again.body) == (201, first.body)
    assert REPLAYED not in first.headers
    assert again.headers == {**first.headers, REPLAYED: "true"}
    assert work.runs == 1
    assert names(backend) == ["run-1"]
    assert rows(backend) == [("", "k-1", 201)]
    backend.wait_until_at_rest()


async def test_repeats_at_the_same_time_wait_for_the_first(
    backend: Backend, mode: Mode, database: Database
) -> None:
    work = Counted()
    app = keyed(counting(mode, work), database)

    answers = await asyncio.gather(*(send(app, f"k-{n % 3}") for n in range(15)))

    assert {answer.status for answer in answers} == {201}
    assert work.runs == 3
    for key in range(3):
        assert len({answer.body for answer in answers[key::3]}) == 1
    assert len(names(backend)) == 3
    backend.wait_until_at_rest()


@both
async def test_L18_nothing_of_a_key_waits_for_the_garbage_collector(
    backend: Backend, mode: Mode, database: Database
) -> None:
    work = Counted()
    app = keyed(counting(mode, work), database)

    async def ask(first: int) -> None:
        for number in range(first, first + 5):
            work.status = 201 if number % 2 else 500
            for body in (b"", b"", b"another"):
                assert (await send(app, f"k-{number}", body=body)).complete

    await ask(0)
    gc.collect()
    gc.disable()
    try:
        await ask(5)
        left = garbage()
    finally:
        gc.enable()

    assert left == []
