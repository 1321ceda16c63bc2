"""Which tests hold which promise where: collected from this folder, written into docs/lifecycle.md.

`python -m tests.lifecycle.matrix` (`make matrix`) writes the tables; `--check` only says what is wrong.
"""

import contextlib
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "lifecycle.md"
PROMISES = {
    "L1": "2xx and 3xx are committed first",
    "L2": "any other status is rolled back",
    "L3": "a mapped exception",
    "L4": "any other exception",
    "L5": "a refused flush or COMMIT",
    "L6": "deadlock and serialization failure",
    "L7": "a connection that had died",
    "L8": "a connection that dies during COMMIT",
    "L9": "a swallowed database error",
    "L10": "a dry run",
    "L11": "a handler that settles",
    "L12": "cancelled before COMMIT",
    "L13": "cancelled during COMMIT",
    "L14": "the client is gone",
    "L15": "a stream that reads",
    "L16": "a stream after writing",
    "L17": "background tasks",
    "L18": "what outlives its unit",
    "L19": "WebSockets",
    "L20": "no session was asked for",
    "L21": "code outside any unit",
    "L22": "tasks and threads on one session",
    "L23": "`def` endpoints",
    "L24": "sync and async mixed",
    "L25": "a write on a read-only unit",
    "L26": "no connection in time",
    "L27": "the app fails after the start",
}
RULES = ("callbacks", "clean connections", "units inside units", "the timeline")
"""What the page promises without a number, below the table."""

EXCUSES = {
    "L6": "storms and deadlocks on PostgreSQL: [test_replay.py](../tests/faults/test_replay.py)",
    "L7": "restarts of PostgreSQL: [test_replay.py](../tests/faults/test_replay.py)",
    "L8": "cuts, a crash and a failover of PostgreSQL: [test_outcome.py](../tests/faults/test_outcome.py)",
}
"""Why a promise has no tests in this folder."""
NOT_YET: set[str] = set()

REMARKS = {
    "L12": "a thread cannot be stopped: its work is rolled back when it ends",
    "L22": "async: tasks; sync: threads",
    "L23": "async: that dependencies share the unit",
    "L26": "`max_waiting` in [test_admission.py](../tests/uow/test_admission.py)",
}
"""What a reader of the numbers ought to know."""

LEGS = {"SQLite": "sqlite", "PostgreSQL": "pg18"}
MODES = ("async", "sync")
STACKS = {
    "starlette": "plain Starlette",
    "mounted": "FastAPI mounted, ours around",
    "mounted-with-ours": "FastAPI mounted, ours in it",
    "theirs-inside": "BaseHTTPMiddleware inside ours",
    "theirs-outside": "BaseHTTPMiddleware around ours",
}
_BY_NAME = re.compile(r"(?:^test|_and)_(L\d+)(?=_)")


@dataclass(frozen=True)
class Held:
    """One test as pytest would run it."""

    test: str
    promises: tuple[str, ...]
    leg: str | None = None
    mode: str | None = None
    stack: str | None = None
    differs: bool = False
    over_socket: bool = True


class _Collector:
    def __init__(self) -> None:
        self.held: list[Held] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.held = [_held(item) for item in session.items if isinstance(item, pytest.Function)]


def _held(item: pytest.Function) -> Held:
    name = item.originalname or item.name
    marked = [each for mark in item.iter_markers("promise") for each in mark.args]
    given: Mapping[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return Held(
        item.nodeid,
        tuple(dict.fromkeys([*_BY_NAME.findall(name), *marked])),
        given.get("backend"),
        given.get("mode"),
        given.get("stacked"),
        item.get_closest_marker("differs") is not None,
        "server" in item.fixturenames,
    )


def collect() -> list[Held]:
    """All tests of this folder, found by pytest itself."""
    collector, said = _Collector(), io.StringIO()
    arguments = [
        "--collect-only",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).parent),
    ]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main(arguments, plugins=[collector])
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"collecting failed:\n{said.getvalue()}")
    return collector.held


def offences(held: Iterable[Held]) -> Iterator[str]:
    """What makes the matrix incomplete: a test without a promise, a cell without a test or a reason."""
    held = list(held)
    known = {*PROMISES, *RULES}
    for test in held:
        if not test.promises:
            yield f"{test.test}: says no promise, neither in its name (test_L1_...) nor by a marker"
        yield from (
            f"{test.test}: there is no promise {each!r}" for each in test.promises if each not in known
        )
    cells = _cells(held)
    for promise in PROMISES:
        for engine in LEGS:
            for mode in MODES:
                count = cells[promise, engine, mode]
                if promise in EXCUSES and count:
                    yield f"{promise} on {engine}, {mode}: has tests, and still an excuse"
                if promise not in EXCUSES and not count:
                    yield f"{promise} on {engine}, {mode}: has neither a test nor an excuse"


def _cells(held: Iterable[Held]) -> Counter[tuple[str, str, str]]:
    engines = {leg: engine for engine, leg in LEGS.items()}
    return Counter(
        (promise, engines[test.leg], test.mode)
        for test in held
        for promise in test.promises
        if test.over_socket and test.stack is None and test.mode is not None and test.leg in engines
    )


def matrix(held: Iterable[Held]) -> str:
    """The promises by engine and kind of session."""
    cells = _cells(held)
    columns = [(engine, mode) for engine in LEGS for mode in MODES]
    rows = [["", "what happens", *(f"{engine}, {mode}" for engine, mode in columns), ""]]
    for promise, what in PROMISES.items():
        numbers = [str(cells[promise, *column] or "-") for column in columns]
        rows.append([_linked(promise), what, *numbers, EXCUSES.get(promise, REMARKS.get(promise, ""))])
    return _table(rows)


def stacks(held: Iterable[Held]) -> str:
    """The core of the promises by the arrangement of frameworks and middlewares."""
    counted: Counter[tuple[str, str]] = Counter()
    differing: set[tuple[str, str]] = set()
    for test in held:
        for promise in test.promises if test.stack else ():
            assert test.stack is not None
            counted[promise, test.stack] += 1
            if test.differs:
                differing.add((promise, test.stack))

    def cell(key: tuple[str, str]) -> str:
        return f"{counted[key] or '-'}{' *' * (key in differing)}"

    shown = [promise for promise in PROMISES if any(counted[promise, stack] for stack in STACKS)]
    rows = [[_linked(promise), *(cell((promise, stack)) for stack in STACKS)] for promise in shown]
    return _table([["", *STACKS.values()], *rows])


def _linked(promise: str) -> str:
    return promise if promise in NOT_YET else f"[{promise}](#{promise.lower()})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *rest = rows
    lines = [header, ["---"] * len(header), *rest]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def written(page: str, held: Iterable[Held]) -> str:
    """The page with its tables as they should be."""
    held = list(held)
    for name, table in (("matrix", matrix(held)), ("stacks", stacks(held))):
        begin, end = f"<!-- {name}: written by `make matrix` -->\n", f"<!-- end of {name} -->\n"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{PAGE.name} has no place for the {name}")
        head, rest = page.split(begin)
        _, tail = rest.split(end)
        page = f"{head}{begin}\n{table}\n{end}{tail}"
    return page


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with `--check` say what is wrong; the status of the process."""
    held = collect()
    wrong = list(offences(held))
    page = PAGE.read_text(encoding="utf-8")
    new = written(page, held)
    if "--check" not in arguments:
        PAGE.write_text(new, encoding="utf-8")
    elif new != page:
        wrong.append(f"{PAGE.name} is out of date: make matrix")
    for each in wrong:
        sys.stdout.write(f"{each}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
