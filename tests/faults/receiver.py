"""A web server that receives the events of an outbox, and may fail, or keep the sender waiting."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.wait import LIMIT

Event = dict[str, Any]


@dataclass
class Receiver:
    """Keeps every event that comes; while its `gate` is closed nobody is answered.

    `fate` says how an event is to be answered, and whether it is kept: (204, True) without it.
    """

    fate: Callable[[], tuple[int, bool]] = lambda: (204, True)
    lock: threading.Lock = field(default_factory=threading.Lock)
    gate: threading.Event = field(default_factory=threading.Event)
    received: list[Event] = field(default_factory=list[Event])
    """Structured CloudEvents, in the order of their coming."""
    waiting: int = 0
    most_waiting: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def take(self, event: Event) -> int:
        with self.lock:
            status, kept = self.fate()
            if kept:
                self.received.append(event)
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        self.gate.wait(4 * LIMIT)
        with self.lock:
            self.waiting -= 1
        return status

    @property
    def firsts(self) -> list[Event]:
        """Without what has come before, by the id."""
        found: dict[str, Event] = {}
        for event in list(self.received):
            found.setdefault(event["id"], event)
        return list(found.values())

    @property
    def repeats(self) -> dict[str, int]:
        """How often an event came too much, by its id."""
        times = Counter(event["id"] for event in list(self.received))
        return {made: count - 1 for made, count in times.items() if count > 1}

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            self.gate.set()
            server.shutdown()
            thread.join(LIMIT)
            server.server_close()


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            body = self.rfile.read(length)
            if len(body) < length:  # who was sending was killed
                self.close_connection = True
                return
            self.send_response(receiver.take(json.loads(body)))
            self.send_header("content-length", "0")
            self.end_headers()

        def handle(self) -> None:
            with suppress(ConnectionError):  # so was who does not read the answer
                super().handle()

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass  # it would be a line for each

    return Handler
