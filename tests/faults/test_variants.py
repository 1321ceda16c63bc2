"""All of the lifecycle holds in other surroundings too: where requests are run again, and behind PgBouncer.

The tests are those of `tests/lifecycle`, those of `tests/faults` for the first, and those of the service for
the second; `tests/support/variant.py` says what is different around them. Here are a few of them, and all
of them with `make faults`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.pgbouncer import why_there_is_none
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT
from tests.support.variant import VARIABLE, Variant, runs_with
from tests.support.wait import LIMIT, wait_until

AT_LENGTH = "FAULTS" in os.environ

FAULTS = ("cancellation", "kill", "nth_point", "servers", "settle_timeout", "shared_session", "threads")
SERVICE = ("concurrency", "conditional", "conflicts", "items", "orders", "paging", "replay", "units")

# The order of all messages and one answer; doom; what is cancelled; what is sealed.
A_FEW: dict[Variant, list[str]] = {
    "replay": [
        f"tests/lifecycle/test_{name}.py" for name in ("order", "doom", "cancelled", "after_the_answer")
    ],
    "pgbouncer": ["tests/lifecycle/test_order.py", "tests/lifecycle/test_read_only.py"],
}
ALL: dict[Variant, list[str]] = {
    "replay": ["tests/lifecycle", *(f"tests/faults/test_{name}.py" for name in FAULTS)],
    "pgbouncer": ["tests/lifecycle", *(f"tests/api/test_{name}.py" for name in SERVICE)],
}
LEGS: dict[Variant, str] = {"replay": "sqlite or pg18 or pgsystem", "pgbouncer": "pg18 or pgsystem"}
LEAST = 500 if AT_LENGTH else 20
"""So many tests are chosen at least."""


def run(folder: Path, variant: Variant) -> tuple[dict[str, int], str]:
    """How often each word stands in the last line of a pytest of its own, and all that it printed."""
    tests, chosen = (ALL, LEGS[variant]) if AT_LENGTH else (A_FEW, "pg18 and async")
    log = folder / "pytest.log"
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "anyio.pytest_plugin",
        f"--basetemp={folder / 'tests'}", "-k", chosen, *tests[variant],
    ]  # fmt: skip
    # What steers the pytest that runs here is not meant for that one.
    env = dict.fromkeys((name for name in os.environ if name.startswith("PYTEST_")), "")
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", VARIABLE: variant}
    child = Child(command, log=log, env=python_environment(env), cwd=ROOT)
    try:
        wait_until(lambda: not child.alive, "the tests have ended", limit=(200 if AT_LENGTH else 10) * LIMIT)
    finally:
        child.stop()
    printed = log.read_text(errors="replace")
    last = printed.rstrip().rpartition("\n")[2]
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", last)}, printed


@pytest.mark.parametrize("variant", A_FEW)
def test_every_promise_is_kept_there_too(tmp_path: Path, variant: Variant) -> None:
    if variant == "pgbouncer" and (reason := why_there_is_none()) is not None:
        pytest.skip(reason)
    told, printed = run(tmp_path, variant)
    assert told.get("passed", 0) >= LEAST, printed
    assert not {"failed", "error", "errors"} & told.keys(), printed


def test_surroundings_that_there_are_none_of_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "replay,pgbounser")
    with pytest.raises(ValueError, match="pgbounser"):
        runs_with("replay")
