"""The kit's own promises on what runs in forks."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from tests.support.forked import run_forked
from tests.support.pages import ROOT
from tests.support.processes import Child, is_running
from tests.support.wait import LIMIT, wait_until


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
    before = multiprocessing.active_children()  # servers that tests share
    with pytest.raises(subprocess.TimeoutExpired):
        run(tmp_path, "import time\ntime.sleep(600)", env={}, timeout=0.5)
    assert {*multiprocessing.active_children()} == {*before}


def test_a_fork_that_goes_on_is_a_child_like_any_other(tmp_path: Path) -> None:
    """It leads its own group, its output comes at once, and whoever waits is told how it ended."""
    (tmp_path / "going_on.py").write_text(
        "import os, signal\nprint(os.getpgrp() == os.getpid() == os.getsid(0), end='')\nsignal.pause()\n"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-m", "going_on"]
    child = Child(command, log=log, env={}, cwd=tmp_path, forked=True)
    try:
        wait_until(lambda: log.exists() and log.read_text() == "True", "it has said so")
        assert (child.alive, is_running(child.pid), child.returncode) == (True, True, None)
    finally:
        assert child.stop(SIGTERM) == -SIGTERM
    assert (child.alive, child.returncode) == (False, -SIGTERM)
    again = Child(command, log=log, env={}, cwd=tmp_path, forked=True)
    assert again.stop() == -SIGKILL


def test_a_fork_need_not_import_what_was_imported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever folder the tests are in when the first one is made."""
    first = f"""import os, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.support.forked import import_once, run_forked
import_once("api.cli")
os.chdir({str(tmp_path)!r})
from pathlib import Path
if __name__ == "__main__":
    ended = run_forked("forked_probe", env={{}}, cwd=Path("."), timeout={LIMIT})
    print(ended.stdout, ended.stderr)
"""
    package = tmp_path / "forked_probe"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys\nprint('api.cli' in sys.modules)\n")
    program = tmp_path / "first.py"
    program.write_text(first)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["True"], "")
