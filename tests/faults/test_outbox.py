"""What was committed arrives, what was not does not, in order, whoever is killed and whatever fails.

`make faults` runs it longer: 2,000 events, and 10 relays that are killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

import pytest

from tests.faults.outbox_app import SCHEMA
from tests.faults.receiver import Receiver
from tests.support.backends import Backend
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT, wait_until
from tests.uow.outboxes import make_outbox_table

LONG = int(os.environ.get("FAULTS", "1")) > 1
UNITS = 2_200 if LONG else 220  # which publish one event each, more or less, that is kept
KILLS = 10 if LONG else 2
SEED = 66


class Unreliable:
    """Fails a tenth of the time: before it has kept the event, or after it."""

    def __init__(self) -> None:
        self._random = Random(SEED)

    def __call__(self) -> tuple[int, bool]:
        fate = self._random.random()
        return (500 if fate < 0.1 else 204), fate >= 0.05


def start(folder: Path, *arguments: str) -> Child:
    command = [sys.executable, "-m", "tests.faults.outbox_app", *arguments]
    return Child(command, log=folder / f"{arguments[0]}.log", env=python_environment(), cwd=ROOT)


@pytest.mark.backends("sqlite", "pg18")
def test_what_was_committed_arrives_once_or_more_and_in_order(backend: Backend, tmp_path: Path) -> None:
    print(f"seed {SEED}")  # noqa: T201 - who repeats a failure needs it
    make_outbox_table(backend)
    for statement in SCHEMA:
        backend.execute(statement)
    receiver = Receiver(Unreliable())
    url = backend.url("async")
    with receiver.serving() as target:
        writer = start(tmp_path, "write", url, str(SEED), str(UNITS))
        relays = [start(tmp_path, "relay", url, target, str(number)) for number in range(2)]
        try:
            kill_relays(relays, tmp_path, url, target, receiver)
            wait_until(lambda: not writer.alive, "the writer has ended", limit=20 * LIMIT)
            assert writer.returncode == 0, (tmp_path / "write.log").read_text()
            # What a killed relay had claimed comes free when its lease is over; nobody waits for that here.
            backend.execute("UPDATE outbox_events SET due = 0")
            wait_until(lambda: backend.count("outbox_events") == 0, "all is sent", limit=10 * LIMIT)
        finally:
            for child in (writer, *relays):
                child.stop()
    judge(backend, receiver)


def kill_relays(relays: list[Child], folder: Path, url: str, target: str, receiver: Receiver) -> None:
    """One after the other, each under way, and another one takes its place."""
    random = Random(SEED)
    for number in range(KILLS):
        enough = len(receiver.received) + random.randint(5, 30)
        wait_until(lambda enough=enough: len(receiver.received) >= enough, "it goes on", limit=4 * LIMIT)  # type: ignore[misc]  # a default binds the loop's variable
        relays[number % 2].stop()
        relays[number % 2] = start(folder, "relay", url, target, str(10 + number))


def judge(backend: Backend, receiver: Receiver) -> None:
    kept = backend.query("SELECT subject, word FROM kept ORDER BY subject, place")
    assert len(kept) >= UNITS * 0.8
    ids: dict[str, str] = {}
    firsts: dict[str, list[str]] = {}
    for event in receiver.received:
        made, subject, word = event["id"], event["subject"], event["data"]["word"]
        if word not in ids:
            firsts.setdefault(subject, []).append(word)
        assert ids.setdefault(word, made) == made, "a repeat has the id of the first"
    assert len(set(ids.values())) == len(ids)
    assert not [word for word in ids if word.endswith("undone")]
    committed: dict[str, list[str]] = {}
    for subject, word in kept:
        committed.setdefault(f"subjects/{subject}", []).append(word)
    assert firsts == committed, "all of it, and each subject in the order of its commits"
    assert len(receiver.received) > len(kept), "some came twice: it was no walk in the park"
    print(f"{len(kept)} committed, {len(receiver.received)} received, {len(ids)} ids")  # noqa: T201 - figures for the documentation
