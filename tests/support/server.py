"""Real server processes on real sockets."""

import contextlib
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import httpx

from tests.support.backends import Backend, Mode
from tests.support.client import RawClient
from tests.support.forked import import_once
from tests.support.processes import Child, free_port, python_environment
from tests.support.wait import LIMIT, wait_until

ROOT = Path(__file__).resolve().parents[2]
_ADDRESS_IN_USE = "address already in use"
# What is read when an interpreter starts, or has it start others.
_STARTS_ANEW = {"PYTHONPATH", "UOW_SERVER__WORKERS"}

import_once("fastapi", "uvicorn.main", "uvloop", "httptools", "aiosqlite", "asyncpg", "psycopg", "uow.retry")


class ServerProcess(ABC):
    """A server in a process of its own on a free loopback port, which it keeps over `restart()`.

    `env` is added to a clean environment (no UOW_*, PG* or UVICORN_* of whoever runs the tests). It
    may be changed between two starts.
    """

    forked = False
    """Whether `python -m ...` may be a fork of a process that has imported most of it."""

    def __init__(self, *, folder: Path, env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.env = dict(env or {})
        self.log_path = folder / f"server-{self.port}.log"
        self._child: Child | None = None
        self._started_once = False
        self._clients = contextlib.ExitStack()

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What to run."""

    @abstractmethod
    def _is_up(self, news: str) -> bool:
        """The server serves; `news` is what it has written to its log since this start."""

    # Running it

    @property
    def base_url(self) -> str:
        """Where it listens: `http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the server; of the parent, if it has worker processes."""
        if self._child is None:
            raise RuntimeError("the server was not started")
        return self._child.pid

    @property
    def alive(self) -> bool:
        """The process is there."""
        return self._child is not None and self._child.alive

    def log(self) -> str:
        """All that it has written, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> Self:
        """Return when it serves: the lifespan is up and connections are accepted."""
        if self.alive:
            return self
        for _ in range(50):
            if self._start_once():
                self._started_once = True
                return self
            # A port that clients know must stay; its last holder, a worker of a killed parent, is
            # about to go.
            if not self._started_once:
                self.port = free_port()
        raise RuntimeError(f"the server found no port:\n{self.log()}")

    def _start_once(self) -> bool:
        """Start the process; False says that its port was taken."""
        written = len(self.log())
        env = python_environment(self.env)
        command = self._command()
        forked = self.forked and [*command[:2]] == [sys.executable, "-m"] and not env.keys() & _STARTS_ANEW
        child = self._child = Child(command, log=self.log_path, env=env, cwd=ROOT, forked=forked)

        def decided() -> bool:
            return not child.alive or self._is_up(self.log()[written:])

        try:
            wait_until(decided, "the server is up", limit=2 * LIMIT)
        except AssertionError as error:
            child.stop()
            raise RuntimeError(f"the server did not come up:\n{self.log()[written:]}") from error
        if child.alive:
            return True
        child.stop()
        news = self.log()[written:]
        if _ADDRESS_IN_USE not in news.lower():
            raise RuntimeError(f"the server ended with {child.returncode} at its start:\n{news}")
        return False

    def kill(self) -> None:
        """SIGKILL to the server and its workers; return when it is gone."""
        if self._child is not None:
            self._child.stop()

    def terminate(self, *, limit: float = LIMIT) -> int:
        """SIGTERM, as a deployment does it; return the exit status. A server that outstays `limit`
        fails the test.
        """
        if self._child is None:
            raise RuntimeError("the server was not started")
        returncode = self._child.stop(signal.SIGTERM, limit=limit)
        if returncode == -signal.SIGKILL:
            raise AssertionError(f"the server did not end on SIGTERM within {limit:g} s:\n{self.log()}")
        return returncode

    def send(self, number: signal.Signals) -> None:
        """Send a signal and wait for nothing."""
        if self._child is not None:
            self._child.send(number)

    def wait_until_gone(self) -> None:
        """Return when the process has ended by itself."""
        wait_until(lambda: not self.alive, "the server has ended")

    def restart(self) -> None:
        """Kill it if it is there, and start it again on the same port."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill it, and close the clients it has given out."""
        self._clients.close()
        self.kill()

    # Talking to it

    def client(self, **options: Any) -> httpx.Client:
        """A client for this server, closed with it; each request has its own connection, so
        restarts do not matter.
        """
        settings: dict[str, Any] = {
            "base_url": self.base_url,
            "timeout": LIMIT,
            "trust_env": False,
            # Nothing here speaks TLS, and to read the authorities takes 30 ms each time.
            "verify": False,
            "limits": httpx.Limits(max_keepalive_connections=0),
            **options,
        }
        return self._clients.enter_context(httpx.Client(**settings))

    def raw(self) -> RawClient:
        """A bare connection to this server, closed with it."""
        return self._clients.enter_context(RawClient(self.port))


class UvicornServer(ServerProcess):
    """`python -m uvicorn module:factory --factory`, run in the project's folder.

    `app` is "module:factory"; with `factory=False` it is "module:app". `graceful_shutdown` is
    `--timeout-graceful-shutdown` in seconds, `loop` is `--loop`, `extra` are more options as on the
    command line. `python` is the interpreter, where it is not the one of the tests.
    """

    def __init__(
        self,
        app: str,
        *,
        folder: Path,
        env: Mapping[str, str] | None = None,
        factory: bool = True,
        workers: int = 1,
        graceful_shutdown: int | None = None,
        loop: Literal["auto", "asyncio", "uvloop"] = "auto",
        extra: Sequence[str] = (),
        python: Path = Path(sys.executable),
    ) -> None:
        super().__init__(folder=folder, env=env)
        self.forked = workers == 1
        self.workers = workers
        self._python = python
        options = ["--factory"] if factory else []
        if graceful_shutdown is not None:
            options += ["--timeout-graceful-shutdown", str(graceful_shutdown)]
        if workers > 1:
            options += ["--workers", str(workers)]
        self._arguments = [app, *options, "--loop", loop, *extra]

    def _command(self) -> Sequence[str]:
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--no-use-colors"]
        return [str(self._python), "-m", "uvicorn", *self._arguments, *place]

    def _is_up(self, news: str) -> bool:
        return "Uvicorn running on" in news and news.count("Application startup complete.") >= self.workers


class CommandServer(ServerProcess):
    """Any command that serves HTTP on the port put in for `{port}`; up when `ready_path` answers at
    all.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        env: Mapping[str, str] | None = None,
        ready_path: str = "/livez",
    ) -> None:
        super().__init__(folder=folder, env=env)
        self._words = list(command)
        self._ready_path = ready_path

    def _command(self) -> Sequence[str]:
        return [word.replace("{port}", str(self.port)) for word in self._words]

    def _is_up(self, news: str) -> bool:
        try:
            httpx.get(f"{self.base_url}{self._ready_path}", timeout=LIMIT, trust_env=False, verify=False)
        except httpx.TransportError:
            return False
        return True


_Server = TypeVar("_Server", bound=ServerProcess)


class Serve:
    """Starts server processes for a test, and ends them all after it: what the fixture `serve`
    gives.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: list[ServerProcess] = []

    def __call__(
        self,
        app: str,
        *,
        backend: Backend | None = None,
        mode: Mode = "async",
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> UvicornServer:
        """A running `UvicornServer` (its options); with `backend` its environment has
        `backend.environment(mode)`.
        """
        settings = {**(backend.environment(mode) if backend else {}), **(env or {})}
        return self._start(UvicornServer(app, folder=self._folder, env=settings, **options))

    def command(
        self, *command: str, env: Mapping[str, str] | None = None, ready_path: str = "/livez"
    ) -> CommandServer:
        """A running `CommandServer`: `serve.command(sys.executable, "-m", "api", "serve", "--port",
        "{port}")`.
        """
        return self._start(CommandServer(command, folder=self._folder, env=env, ready_path=ready_path))

    def _start(self, server: _Server) -> _Server:
        self._servers.append(server)
        server.start()
        return server

    def close(self) -> None:
        """End all of them."""
        while self._servers:
            self._servers.pop().close()
