"""Every seeded bug is caught: the tests that the table names fail with it, and pass without.

A test that passes whatever the library does is worse than none. So each promise has a bug that breaks it
and the tests that must notice, with the words in which they must complain: a test that fails for another
reason, such as a part of the library that the bug no longer fits, has caught nothing.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.canaries.bugs import BUGS, VARIABLE, apply
from tests.canaries.plugin import REPORT
from tests.support.backends import MODES
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT, wait_until
from uow import _unit
from uow._watch import Watch

Caught = dict[str, str]
"""Tests that must fail, each with a pattern of what it says."""


def in_both_modes(test: str, says: str) -> Caught:
    return {test.replace("MODE", mode): says for mode in MODES}


ORDER = "tests/lifecycle/test_order.py::test_"
CANCELLED = "tests/faults/test_cancellation.py::test_cancelled_during_commit_it_is_committed"
SESSION = "tests/uow/test_session.py::test_"
TURNS = "tests/lifecycle/test_turns.py::test_L22_gathered_calls_take_turns"
SQLITE = "tests/uow/test_sqlite.py::test_"

# On SQLite, so that no other server has to be started.
CAUGHT: dict[str, Caught] = {
    "bytes_before_commit": in_both_modes(
        f"{ORDER}L1_and_L17_commit_then_the_answer_then_callbacks_then_the_background_task[sqlite-MODE]",
        r"'start 201' != 'COMMIT'",
    ),
    "errors_are_kept": {
        "tests/uow/test_middleware.py::test_the_status_decides[sqlite-async-404-False]": r"\['nut'\] == \[\]",
        "tests/uow/test_middleware.py::test_the_status_decides[sqlite-sync-500-False]": r"\['nut'\] == \[\]",
    },
    "commit_error_swallowed": in_both_modes(
        f"{ORDER}L5_a_refused_commit_sends_one_start_and_runs_nothing_of_the_answer[sqlite-MODE-_plain]",
        r"'start 201' != 'start 409'",
    ),
    "no_shield": {
        f"{CANCELLED}[sqlite-async-task.cancel]": r"assert False is .*cancelled",
        f"{CANCELLED}[sqlite-sync-anyio scope]": r"assert not True.*\.done",
    },
    "half_a_shield": {
        f"{CANCELLED}[sqlite-async-task.cancel]": r"assert not True.*\.done",
        f"{CANCELLED}[sqlite-sync-anyio scope]": r"assert not True.*\.done",
    },
    "stock_sqlite_driver": in_both_modes(
        f"{SQLITE}a_writer_takes_the_lock_before_it_reads[MODE]", r"True is False"
    ),
    "no_doom": in_both_modes(
        f"{SQLITE}a_begin_that_is_refused_is_sqlalchemys_error_and_dooms_the_unit[MODE]",
        r"DID NOT RAISE.*UnitOfWorkDoomed",
    ),
    "no_seal": {
        f"{SESSION}a_session_that_outlives_its_unit_is_sealed[sqlite-sync]": (
            r"DID NOT RAISE.*UnitOfWorkClosed"
        ),
    },
    "savepoints_contain_nothing": in_both_modes(
        f"{SESSION}an_error_contained_in_a_savepoint_dooms_nothing[sqlite-MODE]", r"assert 500 == 201"
    ),
    "savepoints_forgive": in_both_modes(
        f"{SESSION}an_error_swallowed_inside_a_savepoint_is_raised_where_it_is_released[sqlite-MODE]",
        r"DID NOT RAISE.*IntegrityError",
    ),
    "callbacks_after_a_rollback": in_both_modes(
        "tests/uow/test_callbacks.py::test_a_dry_run_answers_as_it_would_and_keeps_nothing[sqlite-MODE]",
        r"\['never', 'never'\] == \[\]",
    ),
    "readers_may_write": in_both_modes(
        f"{SQLITE}a_reader_cannot_write_whatever_is_sent[MODE]", r"DID NOT RAISE.*ReadOnlyUnitOfWork"
    ),
    "streams_are_settled_late": in_both_modes(
        f"{ORDER}L1_a_streamed_answer_begins_after_commit_too[sqlite-MODE]", r"'start 201' != 'COMMIT'"
    ),
}

# The same, and some more, in a server process of its own: what is seen of them over a socket.
CAUGHT_OVER_A_SOCKET: dict[str, Caught] = {
    "bytes_before_commit": {
        "tests/lifecycle/test_answers.py"
        "::test_L1_no_byte_leaves_before_the_database_has_acknowledged_commit[sqlite-async]": (
            r"assert not True.*arrived"
        ),
    },
    "errors_are_kept": {
        "tests/api/test_state_machine.py::test_the_model_knows_each_way_a_request_can_end[sqlite]": (
            r"unit-doomed.*the handler went on"
        ),
    },
    "stock_sqlite_driver": {
        "tests/faults/test_lost_updates.py"
        "::test_sixteen_clients_that_read_change_and_write_lose_nothing[sqlite-async-and-sync]": (
            r"\[\(\d+,\)\] == \[\(400,\)\]"
        ),
    },
    "no_turns": {
        f"{TURNS}[sqlite-async-a savepoint beside calls-suffixes3-told3]": r"assert 500 == 201",
    },
    "savepoints_for_all": {
        f"{TURNS}[sqlite-async-a savepoint beside calls-suffixes3-told3]": r"\[\] == \['\w+-kept'\]",
    },
    "streams_that_read_end_early": in_both_modes(
        "tests/lifecycle/test_streams.py"
        "::test_L15_a_unit_that_reads_stays_open_to_the_last_byte[sqlite-MODE-execute]",
        r"assert 0 == 1",
    ),
    "web_sockets_promise_early": in_both_modes(
        "tests/lifecycle/test_web_sockets.py::test_L19_a_refused_message_never_leaves[sqlite-MODE]",
        r"'lie \w+' == 'kept \w+'",
    ),
}


TABLES = [*CAUGHT.values(), *CAUGHT_OVER_A_SOCKET.values()]


@dataclass(frozen=True)
class Ending:
    """How one test ended in its own code, fixtures aside."""

    outcome: str
    kind: str
    asserts: bool
    says: str


def run(folder: Path, tests: list[str], bug: str = "") -> tuple[dict[str, Ending], str]:
    """Run tests in a pytest of their own; return how each ended, and all that was printed."""
    report, log = folder / "report.jsonl", folder / "pytest.log"
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "anyio.pytest_plugin",
        "-p", "tests.canaries.plugin", f"--basetemp={folder / 'tests'}", *tests,
    ]  # fmt: skip
    # What steers the pytest that runs here is not meant for that one.
    env = dict.fromkeys((name for name in os.environ if name.startswith("PYTEST_")), "")
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", VARIABLE: bug, REPORT: str(report)}
    child = Child(command, log=log, env=python_environment(env), cwd=ROOT)
    try:
        wait_until(lambda: not child.alive, "the tests have ended", limit=20 * LIMIT)
    finally:
        child.stop()
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    endings = {each.pop("test"): Ending(**each) for each in found if each.pop("when") == "call"}
    return endings, log.read_text(errors="replace")


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_caught_by_the_tests_that_are_named(tmp_path: Path, bug: str) -> None:
    expected = CAUGHT.get(bug, {}) | CAUGHT_OVER_A_SOCKET.get(bug, {})
    endings, printed = run(tmp_path, [*expected], bug)
    assert endings.keys() == expected.keys(), f"not all of them have run:\n{printed}"
    for test, words in expected.items():
        ending = endings[test]
        assert ending.outcome == "failed", f"{test} does not notice {bug}"
        assert ending.asserts, f"{test} breaks on {bug} and does not judge it: {ending}"
        assert re.search(words, ending.says, re.DOTALL), f"{test} fails with {bug}, but says:\n{ending.says}"


def test_without_a_bug_they_pass(tmp_path: Path) -> None:
    tests = list(dict.fromkeys(test for caught in TABLES for test in caught))
    endings, printed = run(tmp_path, tests)
    assert {test: ending.outcome for test, ending in endings.items()} == dict.fromkeys(tests, "passed"), (
        printed
    )


def test_every_bug_has_a_test_that_catches_it_and_none_needs_postgresql() -> None:
    assert CAUGHT.keys() | CAUGHT_OVER_A_SOCKET.keys() == BUGS.keys()
    assert all(TABLES)
    assert not [test for caught in TABLES for test in caught if "[pg" in test]


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_comes_off_again(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    replaced: list[tuple[object, str, object]] = []

    def put(owner: object, part: str, instead: object) -> None:
        replaced.append((owner, part, inspect.getattr_static(owner, part)))
        monkeypatch.setattr(owner, part, instead)

    apply(bug, put)
    assert replaced
    assert all(inspect.getattr_static(owner, part) is not before for owner, part, before in replaced)
    monkeypatch.undo()
    assert all(inspect.getattr_static(owner, part) is before for owner, part, before in replaced)


def test_a_bug_whose_part_of_the_library_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Watch, "doom")
    with pytest.raises(AttributeError, match="a seeded bug finds no 'doom' in Watch"):
        apply("no_doom", monkeypatch.setattr)
    monkeypatch.delattr(_unit, "finish")
    with pytest.raises(AttributeError, match=r"a seeded bug finds no 'finish' in uow\._unit"):
        apply("no_shield", monkeypatch.setattr)


def test_a_bug_that_there_is_none_of_starts_no_test(tmp_path: Path) -> None:
    endings, printed = run(tmp_path, ["tests/uow/test_errors.py"], "no_such_bug")
    assert endings == {}
    assert "KeyError: 'no_such_bug'" in printed
