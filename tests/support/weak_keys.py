"""Closes a way in which Python 3.11 hangs for ever when coverage is measured in a program with threads.

Coverage keeps a WeakKeyDictionary in each thread, with greenlets for keys. Those of a thread that has ended
are freed in a "pending call" of the main thread, and the dictionary's callback runs in it. If the end of
another thread asks for one more pending call meanwhile, the interpreter never gets into the callback: before
it enters a function that is traced it tends to pending calls, and those wait for the one that it is in. So
the callback must not be a function of Python's. Later versions do not hang; in 3.11, see DO_TRACING in
Python/ceval.c.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any


class WeakKeys(weakref.WeakKeyDictionary[Any, Any]):
    """Forgets a key without running any Python; not to be changed while somebody iterates over it."""

    data: dict[Any, Any]

    def __init__(self, *given: Any) -> None:
        super().__init__()
        self._remove = self.data.__delitem__
        self.update(*given)


def use_weak_keys() -> None:
    """Let coverage use them, in each thread that is started from here on; it looks them up by their name."""
    if sys.version_info < (3, 12):
        setattr(weakref, "WeakKeyDictionary", WeakKeys)  # noqa: B010 - a class may not be assigned to
