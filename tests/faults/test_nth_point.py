"""A fault at the N-th point of a request, for every N that there is: the invariants hold after each."""

from __future__ import annotations

import pytest

from tests.faults.judge import violations
from tests.faults.kinds import KINDS, Ending
from tests.faults.points import Fault
from tests.faults.rig import exhaust, rig
from tests.support.backends import Backend, Mode

FAULTS = [
    Fault("await", "raise"),
    Fault("await", "cancel"),
    Fault("await", "cancel late"),
    Fault("event", "raise"),
    Fault("event", "cancel"),
    Fault("message", "raise"),
]


LEAST = {"await": 7, "event": 6, "message": 2}
"""No request has fewer points than so many."""
EVERYWHERE = {
    "await": ("tasks.sleep",),
    "event": ("checkout", "begin", "before_cursor_execute", "after_cursor_execute"),
    "message": ("send",),
}
SYNC_KINDS = [name for name, kind in KINDS.items() if "sync" in kind.modes]

# aiosqlite drops the connection that its thread has made for a caller who was cancelled meanwhile, and
# Python 3.13 says so; it had no transaction, and is closed as it is dropped.
DROPPED_BY_AIOSQLITE = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")

pytestmark = [
    pytest.mark.backends("sqlite", "pg18"),
    pytest.mark.parametrize("ending", ["commit", "rollback"]),
]


@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=DROPPED_BY_AIOSQLITE if name == "connecting" else ()) for name in KINDS]
)
async def test_async(backend: Backend, kind: str, ending: Ending) -> None:
    """Whatever fails or is cancelled in a request with async sessions, wherever."""
    await hold(backend, "async", kind, ending, FAULTS)


@pytest.mark.parametrize("kind", SYNC_KINDS)
async def test_sync(backend: Backend, kind: str, ending: Ending) -> None:
    """The same with sync sessions in worker threads, which wait nowhere: points are events and messages."""
    await hold(backend, "sync", kind, ending, [fault for fault in FAULTS if fault.source != "await"])


async def hold(backend: Backend, mode: Mode, kind: str, ending: Ending, faults: list[Fault]) -> None:
    wrong: list[str] = []
    async with rig(backend, mode, kind) as made:
        for fault in faults:
            hits, violated = await exhaust(made, ending, fault, violations)
            wrong += violated or uncounted(fault, hits)
    assert not wrong, "\n".join(wrong)


def uncounted(fault: Fault, hits: list[str]) -> list[str]:
    """The points that every request has and at which the fault did not come: nothing was proved then."""
    found = [f"{fault} never came at {name!r}" for name in EVERYWHERE[fault.source] if name not in hits]
    if len(hits) < LEAST[fault.source]:
        found.append(f"{fault} came {len(hits)} times only: {hits}")
    return found
