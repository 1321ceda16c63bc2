"""What was committed arrives, what was not does not, in order, whoever is killed and whatever fails.

`make faults` runs it longer: 2,000 events, and 10 relays that are killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import pytest

from tests.faults.outbox_app import SCHEMA
from tests.support.backends import Backend
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT, wait_until
from tests.uow.outboxes import make_outbox_table

LONG = int(os.environ.get("FAULTS", "1")) > 1
UNITS = 2_200 if LONG else 220  # which publish one event each, more or less, that is kept
KILLS = 10 if LONG else 2
SEED = 66


@dataclass
class Receiver:
    """A server that fails a tenth of the time: before it has kept the event, or after it."""

    random: Random = field(default_factory=lambda: Random(SEED))
    lock: threading.Lock = field(default_factory=threading.Lock)
    received: list[tuple[str, str, str]] = field(default_factory=list)
    """The id, the subject and the word of each, in the order of their coming."""

    def take(self, event: dict[str, object], body: dict[str, str]) -> int:
        with self.lock:
            fate = self.random.random()
            if fate < 0.05:
                return 500
            self.received.append((str(event["id"]), str(event["subject"]), body["word"]))
            return 500 if fate < 0.1 else 204

    @contextmanager
    def serving(self) -> Iterator[str]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                event = json.loads(body)
                self.send_response(receiver.take(event, event["data"]))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                pass  # it would be a line for each

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join(LIMIT)
            server.server_close()


def start(folder: Path, *arguments: str) -> Child:
    command = [sys.executable, "-m", "tests.faults.outbox_app", *arguments]
    return Child(command, log=folder / f"{arguments[0]}.log", env=python_environment(), cwd=ROOT)


@pytest.mark.backends("sqlite", "pg18")
def test_what_was_committed_arrives_once_or_more_and_in_order(backend: Backend, tmp_path: Path) -> None:
    print(f"seed {SEED}")  # noqa: T201 - who repeats a failure needs it
    make_outbox_table(backend)
    for statement in SCHEMA:
        backend.execute(statement)
    receiver = Receiver()
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
    for made, subject, word in receiver.received:
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
