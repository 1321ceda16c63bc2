"""Slow units, and those that hold their connection for long, in the log, each with its route."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import structlog

from api.logging import RequestObserver, RequestRecord, current_record
from api.settings import LoggingSettings
from uow import UnitOfWork
from uow.observe import Settlement

log = structlog.stdlib.get_logger("api.unit")


@dataclass(slots=True)
class _Connected:
    """A unit that has a connection, from which on others may have to wait for it."""

    unit: UnitOfWork
    record: RequestRecord | None
    waited: float
    since: float = field(default_factory=perf_counter)
    statements: int = 0
    database_seconds: float = 0.0
    is_told: bool = False

    def fields(self, now: float) -> dict[str, Any]:
        held = now - self.since
        return {
            **_of(self.unit, self.record),
            "duration_ms": _ms(self.waited + held),
            "pool_wait_ms": _ms(self.waited),
            "held_ms": _ms(held),
            "database_ms": _ms(self.database_seconds),
            "statements": self.statements,
        }


class SlowUnitObserver(RequestObserver):
    """Also writes a warning for each slow unit when it is settled, and for each long one while it is open.

    A unit lasts from when it asks for its connection until it has given it back.
    """

    def __init__(self, settings: LoggingSettings) -> None:
        self._slow = settings.slow_unit or float("inf")
        self._long = settings.long_transaction or float("inf")
        self._connected: dict[UnitOfWork, _Connected] = {}
        self._over = threading.Event()

    def connected(self, unit: UnitOfWork, waited: float) -> None:
        # A reader may come again, when it goes on in a transaction.
        if unit not in self._connected:
            self._connected[unit] = _Connected(unit, current_record(), waited)

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        super().statement(unit, seconds)
        if connected := self._connected.get(unit):
            connected.statements += 1
            connected.database_seconds += seconds

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        super().settled(unit, how)
        now = perf_counter()
        connected = self._connected.pop(unit, None)
        record = current_record()
        if connected is not None:
            held = now - connected.since
            if connected.waited + held >= self._slow or held >= self._long:
                log.warning("slow unit", outcome=unit.outcome, **connected.fields(now))
        elif record is not None and unit.is_request and now - record.began >= self._slow:
            # It has waited for a connection in vain: there is nothing else that would say for how long.
            duration = _ms(now - record.began)
            log.warning("slow unit", outcome=unit.outcome, **_of(unit, record), duration_ms=duration)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the open units meanwhile: in a thread, because a handler may block the event loop."""
        if self._long == float("inf"):
            yield
            return
        self._over.clear()
        watcher = threading.Thread(target=self._watch, name="slow-units", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            watcher.join()

    def _watch(self) -> None:
        pause = self._long
        while not self._over.wait(pause):
            pause = self._look(perf_counter())

    def _look(self, now: float) -> float:
        """Tell of each unit that is overdue, once; the seconds until the next can be."""
        due = now + self._long
        for connected in list(self._connected.values()):
            if connected.is_told:
                continue
            if now - connected.since < self._long:
                due = min(due, connected.since + self._long)
            else:
                connected.is_told = True
                log.warning("long transaction", **connected.fields(now))
        return due - now


def observer_of(settings: LoggingSettings) -> RequestObserver:
    """One that measures no more than the settings ask for."""
    return (
        SlowUnitObserver(settings) if settings.slow_unit or settings.long_transaction else RequestObserver()
    )


def _of(unit: UnitOfWork, record: RequestRecord | None) -> dict[str, Any]:
    """Which unit it is; the thread that watches is inside of no request, so all is said here."""
    if record is None:
        return {"unit": unit.name}
    return {
        "unit": unit.name,
        "method": record.scope["method"],
        "route": record.route,
        "request_id": record.request_id,
        **({"attempt": unit.attempt} if unit.attempt > 1 else {}),
        **({"principal": record.principal} if record.principal else {}),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
