"""SQLite: the file beside the database by whose bytes processes tell each other which keys they work on."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import stat
import sys
from pathlib import Path
from signal import SIGKILL
from subprocess import PIPE, Popen
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from tests.support.backends import Backend, Mode, SqliteBackend
from tests.support.processes import python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT
from tests.uow.conftest import Connect
from tests.uow.keys import (
    IN_USE,
    Counted,
    Held,
    counting,
    held_elsewhere,
    keyed,
    make_keys,
    open_lock_files,
    path_of_locks,
    problem,
    send,
)
from tests.uow.units import IN_MEMORY, make_tables, names
from uow import Database
from uow.idempotency import _locks
from uow.idempotency._locks import lock_file, lock_key

pytestmark = pytest.mark.backends("sqlite")


@pytest.fixture(autouse=True)
def _keys(backend: Backend) -> None:
    make_tables(backend)
    make_keys(backend)


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


@pytest.mark.parametrize("url", IN_MEMORY)
async def test_a_database_in_memory_has_no_file_to_lock(backend: Backend, url: str, connect: Connect) -> None:
    assert lock_file(connect(url)) is None
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    assert lock_file(Database.from_engines(writer=engine)) is None


@pytest.mark.parametrize("what", ["links to itself", "takes no locks", "is somebody else's"])
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

        if what == "takes no locks":
            monkeypatch.setattr(_locks, "_set_lock", refuse)
        else:
            monkeypatch.setattr(os, "fchmod", refuse)
    work = Counted()
    app = keyed(counting(mode, work), database)

    with caplog.at_level(logging.WARNING, "uow"):
        answers = await asyncio.gather(*(send(app) for _ in range(3)))

    assert {(answer.status, answer.body) for answer in answers} == {(201, b'{"run":1}')}
    assert (work.runs, names(backend)) == (1, ["run-1"])
    assert caplog.text.count("no lock for idempotency keys") == 1
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


async def test_a_fork_has_no_part_in_the_locks(backend: Backend, connect: Connect) -> None:
    """What it does at once: were it to unlock them, its parent would have them no more."""
    path = lock_file(connect(backend))
    assert path is not None
    lock = await lock_key(path, "", "k", until=0.0)
    assert lock is not None
    shared = os.dup(lock._file)  # as the parent has it

    _locks._forked()
    lock.end()

    assert await lock_key(path, "", "k", until=0.0) is None
    os.close(shared)
    assert open_lock_files(backend) == 0


KILLED = """
import asyncio, os, signal, sys
from uow.idempotency._locks import lock_key

lock = asyncio.run(lock_key(sys.argv[1], "", "k", until=0.0))
assert lock is not None
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def start(command: list[str], environment: dict[str, str]) -> Popen[bytes]:
    return Popen(command, env=environment, stdin=PIPE)


async def test_a_process_that_is_killed_has_no_lock_though_it_has_forked_another(
    backend: Backend, connect: Connect, tmp_path: Path
) -> None:
    """An idle worker of a ProcessPoolExecutor lives on, and has open what was open when it was made."""
    path = lock_file(connect(backend))
    assert path is not None
    environment = python_environment({"PYTHONPATH": str(ROOT)})
    with start([sys.executable, "-c", KILLED, path], environment) as killed:
        assert killed.wait(LIMIT) == -SIGKILL
        until = asyncio.get_running_loop().time() + LIMIT  # for its child to have closed it
        lock = await lock_key(path, "", "k", until)
        assert lock is not None
        lock.end()


@pytest.mark.parametrize("euid", [0, 1000])
async def test_whoever_may_write_the_database_may_lock_it(
    backend: Backend, connect: Connect, monkeypatch: pytest.MonkeyPatch, euid: int
) -> None:
    """As with the files that SQLite makes, whatever the umask says and whoever comes first."""
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr(os, "fchown", lambda file, uid, gid: owners.append((uid, gid)))
    path = lock_file(connect(backend))
    assert path is not None
    like = path.removesuffix("-keys")
    os.chmod(like, 0o660)
    before = os.umask(0o077)
    try:
        lock = await lock_key(path, "", "k", until=0.0)
    finally:
        os.umask(before)

    assert lock is not None
    lock.end()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    database = os.stat(like)
    assert owners == ([(database.st_uid, database.st_gid)] if euid == 0 else [])


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


def ways_to_name(backend: Backend, link: Path) -> list[str]:
    """URLs of the same file: as it is, from the working folder, through a link, and as a URI."""
    assert isinstance(backend, SqliteBackend)
    link.symlink_to(backend.path)
    uri = f"file://{quote(str(link))}?uri=true"
    paths = [str(backend.path), os.path.relpath(backend.path), str(link), uri]
    return [f"sqlite:///{path}" for path in paths]
