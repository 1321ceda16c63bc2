"""The kit's own promises on what runs in forks, and on what coverage is measured in."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.forked import run_forked
from tests.support.measured import Measuring
from tests.support.wait import LIMIT

TESTS = Path(__file__).resolve().parent


def run(
    folder: Path, source: str, *arguments: str, env: Mapping[str, str], timeout: float = LIMIT
) -> subprocess.CompletedProcess[str]:
    package = folder / "forked_probe"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(source, encoding="utf-8")
    return run_forked("forked_probe", *arguments, env=env, cwd=folder, timeout=timeout)


def test_a_fork_has_the_arguments_environment_and_folder_that_it_is_given(tmp_path: Path) -> None:
    source = """import os, sys
print(__name__, sys.argv[1:], dict(os.environ), os.getcwd())
print("trouble", file=sys.stderr)
sys.exit(7)
"""
    ended = run(tmp_path, source, "one", "two", env={"ONLY": "this"})
    assert ended.returncode == 7
    assert ended.stdout == f"__main__ ['one', 'two'] {{'ONLY': 'this'}} {tmp_path}\n"
    assert ended.stderr == "trouble\n"


def test_a_fork_that_crashes_says_why(tmp_path: Path) -> None:
    ended = run(tmp_path, "raise ZeroDivisionError('by me')", env={})
    assert ended.returncode == 1
    assert "ZeroDivisionError: by me" in ended.stderr


def test_a_fork_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(tmp_path, "import time\ntime.sleep(600)", env={}, timeout=0.5)
    assert multiprocessing.active_children() == []


def test_coverage_is_measured_in_the_tests_that_count_only() -> None:
    said: list[str] = []
    controller: Any = SimpleNamespace(
        pause=lambda: said.append("pause"), resume=lambda: said.append("resume")
    )
    plugin = Measuring(controller)

    def runs(folder: str, *marks: str) -> list[str]:
        said.clear()
        item: Any = SimpleNamespace(
            path=TESTS / folder / "test_x.py", get_closest_marker=lambda name: name in marks or None
        )
        next(plugin.pytest_runtest_protocol(item))
        return said

    assert runs("faults") == []
    assert runs("uow") == ["resume"]
    assert runs("uow/testing") == []
    assert runs("faults", "measured") == []
    assert runs("faults", "backends") == ["pause"]
