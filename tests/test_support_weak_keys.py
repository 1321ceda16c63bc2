"""Python 3.11 does not hang where coverage is measured in a program with threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT

# A key is forgotten in a pending call, while another one waits, as where two threads end at one time.
ENDS = """
import ctypes, sys
from tests.support.weak_keys import WeakKeys

class Key:
    pass

index = WeakKeys()
index[key := Key()] = 1
pending = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
call_soon = ctypes.pythonapi.Py_AddPendingCall
another = pending(lambda _: 0)
events = []

def thread_ended(_):
    sys.settrace(None)
    call_soon(another, None)
    sys.settrace(trace)
    globals().pop("key")
    sys.settrace(None)
    events.append(len(index))
    return 0

def trace(*_):
    return trace

ended = pending(thread_ended)
call_soon(ended, None)
for _ in range(10):
    pass
print(events)
"""

USED = """
import gc, threading, coverage
from tests.support.weak_keys import WeakKeys, use_weak_keys

use_weak_keys()
measured = coverage.Coverage(data_file=None, concurrency=["greenlet", "thread"], source=["tests"])
measured.start()
thread = threading.Thread(target=sorted, args=([2, 1],))
thread.start()
thread.join()
measured.stop()
print(sum(type(each) is WeakKeys for each in gc.get_objects()) > 0)
"""


def run(program: str, folder: Path) -> str:
    path = folder / "program.py"
    path.write_text(program)
    ended = subprocess.run(
        [sys.executable, path],
        env=python_environment({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_a_thread_that_ends_while_another_one_does_hangs_nothing(tmp_path: Path) -> None:
    assert run(ENDS, tmp_path) == "[0]\n"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later versions of Python do not hang")
def test_coverage_uses_it_in_threads(tmp_path: Path) -> None:
    assert run(USED, tmp_path) == "True\n"
