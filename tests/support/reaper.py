"""A watcher that outlives a killed test run just long enough to end the processes that the run had
started.

It is run as a script. On its standard input come lines: `start PID SIGNAL`, `gone PID`, `folder
PATH`. The end of the input means that the test run is over, however it ended: the process groups
that are still named get their signal, and the folders are removed.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterable


def serve(lines: Iterable[str]) -> None:
    """Follow the lines to their end, then end what is left."""
    running: dict[int, int] = {}
    folders: list[str] = []
    for line in lines:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "start":
            child, _, number = rest.partition(" ")
            running[int(child)] = int(number)
        elif word == "gone":
            running.pop(int(rest), None)
        elif word == "folder":
            folders.append(rest)
    for pid, signal_number in running.items():
        _signal_group(pid, signal_number)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_signal_group(pid, 0) for pid in running):
        time.sleep(0.05)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _signal_group(pid: int, signal_number: int) -> bool:
    try:
        os.killpg(pid, signal_number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    serve(sys.stdin)
