"""SQLite: what a repeat is told whose first request is in another process.

Another process is mostly a second database object here: its locks are those of another open file, as those of
a process are. `tests/faults/test_key_in_flight.py` has real ones, which are killed.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from tests.support.asgi import watch
from tests.support.backends import Backend, Mode, SqliteBackend
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.keys import REPLAYED, Counted, Held, counting, keyed, make_keys, problem, send
from tests.uow.units import make_tables, names
from uow import Database
from uow.idempotency import _locks
from uow.idempotency._locks import KeyLock, lock_file, lock_key

pytestmark = pytest.mark.backends("sqlite")

IN_USE = (409, "/problems/idempotency-key-in-use")
BUSY = (503, "/problems/serialization-failure")


@pytest.fixture(autouse=True)
def _keys(backend: Backend) -> None:
    make_tables(backend)
    make_keys(backend)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the lock was to be had, at each look at it."""
    found: list[bool] = []
    try_ = _locks._try

    def counted(path: str, offset: int) -> KeyLock | None:
        lock = try_(path, offset)
        found.append(lock is not None)
        return lock

    monkeypatch.setattr(_locks, "_try", counted)
    return found


async def held_elsewhere(held: Held, database: Database, key: str = "k-1") -> asyncio.Task[Any]:
    first = asyncio.ensure_future(send(keyed(held.endpoint, database), key))
    await held.entered.acquire()
    return first


@pytest.mark.parametrize("wait", [0.0, 0.1])
async def test_a_repeat_is_told_that_the_first_request_is_under_way(
    mode: Mode, backend: Backend, connect: Connect, wait: float
) -> None:
    held, work = Held(), Counted()
    first = await held_elsewhere(held, connect(backend))
    elsewhere = keyed(counting(mode, work), connect(backend), wait=wait)

    with watch([]) as timeline:
        repeat = await send(elsewhere)

    assert problem(repeat) == IN_USE
    assert int(repeat.headers["retry-after"]) > 0
    assert timeline == []  # it has not even asked for the writer
    held.go.release()
    assert (await first).status == 201
    again = await send(elsewhere)
    assert (again.status, again.json(), again.headers[REPLAYED]) == (201, {"run": 1}, "true")
    assert (work.runs, names(backend)) == (0, ["run-1"])


async def test_where_the_writer_works_on_another_key_nobody_is_told_so(
    mode: Mode, backend: Backend, connect: Connect
) -> None:
    held, work = Held(), Counted()
    work.runs = 1
    first = await held_elsewhere(held, connect(backend), "another")
    elsewhere = keyed(counting(mode, work), connect(backend, pool_timeout=0.1), wait=LIMIT)

    early = await send(elsewhere)

    assert problem(early) == BUSY
    assert int(early.headers["retry-after"]) > 0
    assert work.runs == 1
    held.go.release()
    assert (await first).status == 201
    late = await send(elsewhere)
    assert (late.status, REPLAYED in late.headers, names(backend)) == (201, False, ["run-1", "run-2"])


async def test_a_repeat_waits_for_the_answer(
    mode: Mode, backend: Backend, connect: Connect, looks: list[bool]
) -> None:
    held, work = Held(), Counted()
    first = await held_elsewhere(held, connect(backend, pool_timeout=0.1))
    elsewhere = keyed(counting(mode, work), connect(backend, pool_timeout=0.1), wait=LIMIT)
    repeats = [asyncio.ensure_future(send(elsewhere)) for _ in range(5)]
    await wait_until_async(lambda: looks.count(False) > 1, "one of them waits for the lock")
    held.go.release()

    answers = [await each for each in (first, *repeats)]

    assert {(answer.status, answer.body) for answer in answers} == {(201, b'{"run":1}')}
    assert (work.runs, names(backend)) == (0, ["run-1"])


async def test_a_repeat_takes_over_when_the_first_fails(
    mode: Mode, backend: Backend, connect: Connect, looks: list[bool]
) -> None:
    held, work = Held(500), Counted()
    first = await held_elsewhere(held, connect(backend))
    second = asyncio.ensure_future(send(keyed(counting(mode, work), connect(backend))))
    await wait_until_async(lambda: False in looks, "it waits for the lock")
    held.go.release()

    assert (await first).status == 500
    assert (await second).json() == {"run": 1}
    assert (work.runs, names(backend)) == (1, ["run-1"])


async def test_whoever_leaves_leaves_no_lock(
    mode: Mode, backend: Backend, connect: Connect, looks: list[bool]
) -> None:
    """L12: neither the first request nor a repeat that waits for it."""
    held, work = Held(), Counted()
    here, elsewhere = connect(backend), keyed(counting(mode, work), connect(backend))
    first = await held_elsewhere(held, here)
    repeat = asyncio.ensure_future(send(elsewhere))
    await wait_until_async(lambda: False in looks, "it waits for the lock")
    for request in (repeat, first):
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    assert (await send(elsewhere)).json() == {"run": 1}
    assert names(backend) == ["run-1"]
    assert open_lock_files(backend) == 0


async def test_other_keys_and_other_people_do_not_wait_for_the_lock(
    backend: Backend, connect: Connect
) -> None:
    path = lock_file(connect(backend))
    assert path is not None
    names = [("", "k"), ("", "k-2"), ("ann", "k"), ("an", "nk"), ("2 an", "k"), ("ä", "k")]
    locks = [await lock_key(path, *name, until=0.0) for name in names]
    assert None not in locks
    assert [await lock_key(path, *name, until=0.0) for name in names] == [None] * len(names)
    for lock in locks:
        assert lock is not None
        lock.end()
        lock.end()  # does nothing
    assert open_lock_files(backend) == 0


async def test_however_the_file_is_named_it_is_the_same_lock(
    backend: Backend, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    urls = ways_to_name(backend, tmp_path / "a link")

    assert {lock_file(connect(url)) for url in urls} == {path_of_locks(backend)}
    held = Held()
    first = await held_elsewhere(held, connect(urls[0]))
    for url in urls:
        assert problem(await send(keyed(held.endpoint, connect(url), wait=0.0))) == IN_USE
    held.go.release()
    assert (await first).status == 201


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
async def test_a_database_in_memory_has_no_file_to_lock(backend: Backend, url: str, connect: Connect) -> None:
    assert lock_file(connect(url)) is None
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    assert lock_file(Database.from_engines(writer=engine)) is None


async def test_where_there_are_no_such_locks_the_writer_is_waited_for(
    mode: Mode, backend: Backend, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uow.idempotency._locks.sys.platform", "darwin")
    held, work = Held(), Counted()
    first = await held_elsewhere(held, connect(backend))
    elsewhere = keyed(counting(mode, work), connect(backend, pool_timeout=0.1))

    assert problem(await send(elsewhere)) == BUSY
    held.go.release()
    assert (await first).status == 201
    assert (await send(elsewhere)).headers[REPLAYED] == "true"
    assert work.runs == 0


@pytest.mark.parametrize("what", ["links to itself", "takes no locks"])
async def test_a_file_that_cannot_be_locked_costs_no_request(
    mode: Mode,
    backend: Backend,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    database = connect(backend)
    if what == "links to itself":
        os.symlink(path_of_locks(backend), path_of_locks(backend))
    else:

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr(_locks, "_set_lock", refuse)
    work = Counted()
    app = keyed(counting(mode, work), database)

    with caplog.at_level(logging.WARNING, "uow"):
        answers = await asyncio.gather(*(send(app) for _ in range(3)))

    assert {(answer.status, answer.body) for answer in answers} == {(201, b'{"run":1}')}
    assert (work.runs, names(backend)) == (1, ["run-1"])
    assert "no lock for idempotency keys" in caplog.text
    assert open_lock_files(backend) == 0


async def test_a_process_that_was_forked_meanwhile_has_no_lock(backend: Backend, connect: Connect) -> None:
    """It has the file open as well, for as long as it lives: a pool of processes, say."""
    path = lock_file(connect(backend))
    assert path is not None
    forks = multiprocessing.get_context("fork")
    lock = await lock_key(path, "", "k", until=0.0)
    assert lock is not None
    ends = forks.Event()
    child = forks.Process(target=ends.wait, args=(LIMIT,))
    child.start()
    try:
        lock.end()
        again = await lock_key(path, "", "k", until=0.0)
        assert again is not None
        again.end()
    finally:
        ends.set()
        child.join()
    assert child.exitcode == 0


async def test_a_file_that_was_removed_is_made_again(backend: Backend, connect: Connect) -> None:
    """By an operator who restores a backup, say."""
    held = Held()
    first = await held_elsewhere(held, connect(backend))
    os.unlink(path_of_locks(backend))
    held.go.release()
    assert (await first).status == 201

    first = await held_elsewhere(held, connect(backend), "k-2")
    assert problem(await send(keyed(held.endpoint, connect(backend), wait=0.0), "k-2")) == IN_USE
    held.go.release()
    assert (await first).status == 201


def path_of_locks(backend: Backend) -> str:
    assert isinstance(backend, SqliteBackend)
    return f"{os.path.realpath(backend.path)}-keys"


def ways_to_name(backend: Backend, link: Path) -> list[str]:
    """URLs of the same file: as it is, from the working folder, through a link, and as a URI."""
    assert isinstance(backend, SqliteBackend)
    link.symlink_to(backend.path)
    uri = f"file://{quote(str(link))}?uri=true"
    paths = [str(backend.path), os.path.relpath(backend.path), str(link), uri]
    return [f"sqlite:///{path}" for path in paths]


def open_lock_files(backend: Backend) -> int:
    """How many this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            found += os.readlink(entry) == path_of_locks(backend)
    return found
