"""What must be true of a request whatever went wrong in it: the invariants, each with its name."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.faults.kinds import SEEDS
from tests.faults.rig import Run

CALLBACKS = ("one", "two")


def violations(run: Run) -> list[str]:
    """Every invariant that this run broke; none is the promise."""
    found = [
        *_units(run),
        *_sent(run),
        *_promises(run),
        *_order(run),
        *_answer(run),
        *_afterwards(run),
        *run.left,
    ]
    return found if run.hit else [*found, *_undisturbed(run)]


def _units(run: Run) -> Iterator[str]:
    """Each unit is settled once, all of it or none, as it says, and its callbacks run if it was kept."""
    for unit, expected in run.kind.units.items():
        rows = run.rows[unit]
        if rows and rows != expected:
            yield f"half of unit {unit!r} is there: {rows}"
        outcomes = run.outcomes("first" if unit == "inner" else unit)
        outcome = outcomes[0] if outcomes else None
        if len(outcomes) > 1:
            yield f"unit {unit!r} was settled {len(outcomes)} times"
        if outcome is None and (rows or unit in run.ledger.begun):
            yield f"unit {unit!r} was never settled"
        if outcome == "committed" and expected and not rows and unit != "inner":
            yield f"unit {unit!r} says committed, and its rows are not there"
        if outcome == "rolled_back" and rows:
            yield f"unit {unit!r} says rolled back, and its rows are there"
        if unit in run.ledger.begun:
            yield from _callbacks(run, unit, outcome)


def _sent(run: Run) -> Iterator[str]:
    """A unit is unknown only if its COMMIT was sent; before that, everybody knows that it was not kept."""
    sent = sum(what.startswith("COMMIT") for what in run.wire.timeline)
    outcomes = [outcome for _, outcome in run.ledger.outcomes if outcome in ("committed", "unknown")]
    if len(outcomes) > sent and not run.kind.read_only:
        yield f"{sent} COMMITs were sent, and the units are {outcomes}"
    if "unknown" in outcomes and run.points.cancelled:
        yield "a COMMIT was not finished because the request was cancelled"


def _callbacks(run: Run, unit: str, outcome: str | None) -> Iterator[str]:
    times = [run.ledger.called.count((unit, callback)) for callback in CALLBACKS]
    due = 1 if outcome == "committed" else 0
    if times != [due, due]:
        yield f"the on_commit callbacks of unit {unit!r}, which is {outcome}, ran {times} times"


def _promises(run: Run) -> Iterator[str]:
    """I1: what was promised is there. I2: what was refused is not."""
    for unit, word in _words(run).items():
        rows = run.rows[unit]
        if word == "kept" and rows != run.kind.units[unit]:
            yield f"I1: unit {unit!r} was promised, and a second connection sees {rows}"
        if word == "refused" and rows:
            yield f"I2: unit {unit!r} was refused, and a second connection sees {rows}"


def _words(run: Run) -> dict[str, str]:
    """What the client was told of each unit: kept, refused or unknown."""
    texts = [m["text"].split() for m in run.wire.messages if m["type"] == "websocket.send"]
    words = {unit: word for word, unit in texts}
    status = run.wire.status
    if status is not None:
        word = "kept" if 200 <= status < 400 else "refused"
        words["first"] = "unknown" if _says_unknown(run) else word
    return words


def _says_unknown(run: Run) -> bool:
    if run.wire.headers.get("content-type") != "application/problem+json":
        return False
    # A problem document that was cut off says nothing but its status.
    return not run.wire.complete or json.loads(run.wire.body).get("outcome") == "unknown"


def _order(run: Run) -> Iterator[str]:
    """I5: as many COMMITs are acknowledged before each promise as there are promises."""
    commits = promises = 0
    for what in () if run.kind.read_only else run.wire.timeline:
        commits += what == "COMMIT"
        is_promise = what.startswith(("start 2", "kept "))
        promises += is_promise
        if is_promise and promises > commits:
            yield f"I5: {what!r} went out before the database acknowledged COMMIT"


def _answer(run: Run) -> Iterator[str]:
    """One answer, with nothing after its end; a stream that was cut does not look complete."""
    timeline, wire = run.wire.timeline, run.wire
    if len(wire.starts) > 1:
        yield f"{len(wire.starts)} answers began"
    after = timeline[timeline.index("body last") + 1 :] if "body last" in timeline else []
    if any(what.startswith(("start", "body")) for what in after):
        yield f"the answer went on after its end: {after}"
    if wire.status == 200 and wire.complete and wire.body.decode().split() != list(SEEDS):
        yield f"a stream that was cut looks complete: {wire.body!r}"
    if run.points.cancelled and not run.task.cancelled():
        yield "the cancellation was swallowed"


def _afterwards(run: Run) -> Iterator[str]:
    """A background task runs only after the app's own answer."""
    if len(run.ledger.ran) > 1:
        yield "the background task ran twice"
    if run.ledger.ran and run.wire.status != run.kind.status(run.ending):
        yield f"a background task ran for an answer that was refused: {run.wire.status}"


def _undisturbed(run: Run) -> Iterator[str]:
    """Without a fault the request does what it says."""
    if run.task.cancelled() or run.task.exception() is not None:
        yield "the request failed without a fault"
    expected = run.kind.units if run.ending == "commit" else dict.fromkeys(run.kind.units, frozenset())
    if run.rows != expected:
        yield f"without a fault a second connection sees {run.rows}"
    if run.kind.name == "websocket":
        word = "kept" if run.ending == "commit" else "refused"
        if _words(run) != dict.fromkeys(run.kind.units, word):
            yield f"without a fault the client was told {_words(run)}"
    elif run.wire.status != run.kind.status(run.ending) or not run.wire.complete:
        yield f"without a fault the answer is {run.wire.status}"
    if run.kind.name == "background" and len(run.ledger.ran) != 1:
        yield "the background task did not run"
