"""The matrix in docs/lifecycle.md is complete, current and made of tests that exist."""

import subprocess
import sys
from pathlib import Path

import pytest
from starlette.routing import Route

from tests.lifecycle.matrix import (
    EXCUSES,
    LEGS,
    MODES,
    PAGE,
    PROMISES,
    REMARKS,
    Held,
    offences,
    stacks,
    written,
)
from tests.lifecycle.stacks import ROUTERS
from tests.support.processes import python_environment

ROOT = Path(__file__).resolve().parents[1]
FULL = [
    Held(f"test_{promise}", (promise,), leg, mode)
    for promise in PROMISES
    if promise not in EXCUSES
    for leg in LEGS.values()
    for mode in MODES
]


def test_the_page_is_current_and_every_cell_is_held() -> None:
    command = [sys.executable, "-m", "tests.lifecycle.matrix", "--check"]
    found = subprocess.run(
        command, cwd=ROOT, env=python_environment(), capture_output=True, text=True, check=False
    )
    assert (found.stdout, found.stderr, found.returncode) == ("", "", 0)


def test_a_full_matrix_has_no_offences() -> None:
    assert list(offences(FULL)) == []


@pytest.mark.parametrize(
    ("held", "what"),
    [
        ([*FULL, Held("test_x", (), "sqlite", "async")], "says no promise"),
        ([*FULL, Held("test_x", ("L99",), "sqlite", "async")], "there is no promise 'L99'"),
        (FULL[1:], "L1 on SQLite, async: has neither"),
        ([*FULL[1:], Held("test_x", ("L1",), "sqlite", "async", over_socket=False)], "L1 on SQLite, async"),
        ([*FULL[1:], Held("test_x", ("L1",), "pgsystem", "async")], "L1 on SQLite, async: has neither"),
        ([*FULL, Held("test_x", ("L6",), "sqlite", "sync")], "L6 on SQLite, sync: has tests"),
    ],
    ids=["no promise", "unknown promise", "no test", "in process", "another leg", "needless excuse"],
)
def test_what_is_missing_is_found(held: list[Held], what: str) -> None:
    (offence,) = offences(held)
    assert what in offence


def test_a_page_that_says_something_else_is_out_of_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, FULL) != page
    assert written(written(page, FULL), FULL) == written(page, FULL)


def test_what_differs_is_starred() -> None:
    held = [Held("a", ("L1",), stack="mounted"), Held("b", ("L1",), stack="starlette", differs=True)]
    assert "| [L1](#l1) | 1 * | 1 | - | - | - |\n" in stacks(held)


def test_excuses_and_remarks_belong_to_promises() -> None:
    assert {*EXCUSES, *REMARKS} <= {*PROMISES}
    assert not {*EXCUSES} & {*REMARKS}


def test_both_modes_have_the_same_cases() -> None:
    def cases(mode: str) -> list[tuple[str, list[str]]]:
        routes = [route for router in ROUTERS[mode] for route in router.routes if isinstance(route, Route)]
        return [(route.path, sorted(route.methods or ())) for route in routes]

    assert cases("async") == cases("sync")
    assert len(cases("async")) > 20
