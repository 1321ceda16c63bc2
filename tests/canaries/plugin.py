"""A plug-in of pytest that runs tests on a library with a seeded bug, and writes down how each ended.

    TESTS_BUG=no_doom python -m pytest -p tests.canaries.plugin tests/uow/test_session.py

The servers that the tests start have the bug as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from tests.canaries.bugs import VARIABLE, apply_from_environment
from tests.support.server import CommandServer, ServerProcess, UvicornServer
from tests.support.wait import LIMIT, wait_until, wait_until_async

REPORT = "TESTS_BUG_REPORT"
"""The environment variable that names the file for the ends of the tests, a line of JSON for each."""


def pytest_configure(config: pytest.Config) -> None:
    apply_from_environment()
    for kind in (UvicornServer, CommandServer):
        _launch_with_the_bug(kind)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _wait_at_most(LIMIT)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    # With a bug, much of what fixtures wait for at the end never comes, and the test has judged by then.
    if os.environ.get(VARIABLE):
        _wait_at_most(0.5)


def _wait_at_most(seconds: float) -> None:
    for waits in (wait_until, wait_until_async):
        assert waits.__kwdefaults__ is not None
        waits.__kwdefaults__["limit"] = seconds


def _launch_with_the_bug(kind: type[ServerProcess]) -> None:
    plain = kind._command

    def command(server: ServerProcess) -> Sequence[str]:
        python, *words = plain(server)
        assert words[0] == "-m", f"{words} cannot be started with a bug"
        return [python, "-m", "tests.canaries.launch", *words[1:]]

    setattr(kind, "_command", command)  # noqa: B010 - an assignment to a method is an error to mypy


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if path := os.environ.get(REPORT):
        error = None if call.excinfo is None else call.excinfo.value
        line = {
            "test": item.nodeid,
            "when": report.when,
            "outcome": report.outcome,
            "kind": "" if error is None else type(error).__name__,
            "asserts": isinstance(error, (AssertionError, pytest.fail.Exception)),
            "says": "" if error is None else str(error),
        }
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return report
