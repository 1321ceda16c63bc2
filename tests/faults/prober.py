"""Asks an endpoint all the time, from a process that has nothing else to do, and tells how long it took.

In the process of a test whose threads are 200 clients, it would measure how long it waits for its own turn.
Run as a script it takes a port and a path, asks until its input ends, and writes what came back.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from statistics import quantiles

from tests.support.processes import python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT

PAUSE = 0.01  # seconds


@dataclass
class Probed:
    """What came back; filled at the end of the block."""

    statuses: set[int] = field(default_factory=set)
    milliseconds: list[float] = field(default_factory=list)

    def percentile(self, of_100: int) -> float:
        """Milliseconds that so many of a hundred answers took at most."""
        return quantiles(self.milliseconds, n=100)[of_100 - 1]

    def __str__(self) -> str:
        return (
            f"{len(self.milliseconds)} asked, median {self.percentile(50):.1f} ms, "
            f"p99 {self.percentile(99):.1f} ms, max {max(self.milliseconds):.1f} ms"
        )


@contextmanager
def probing(port: int, path: str = "/livez") -> Iterator[Probed]:
    """Ask until the end of the block."""
    probed = Probed()
    command = [sys.executable, "-m", "tests.faults.prober", str(port), path]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=python_environment()
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "begun\n"
            yield probed
        finally:
            told, _ = child.communicate(timeout=LIMIT)
    answers = json.loads(told)
    probed.statuses = {status for status, _ in answers}
    probed.milliseconds = [1000 * seconds for _, seconds in answers]


def _ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, float]:
    begun = time.perf_counter()
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status, time.perf_counter() - begun


def _main(port: int, path: str) -> None:
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()  # it ends with the block, and with the test run too, however that ends
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)) as connection:
        answers = [_ask(connection, path)]
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        while not over.wait(PAUSE):
            answers.append(_ask(connection, path))
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
