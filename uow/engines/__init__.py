"""What differs by engine: one module each, chosen by the URL's dialect."""

from __future__ import annotations

from .base import SECONDS_TO_BEGIN, Adapter, TransactionState, driver_of, is_exhausted
from .postgresql import PostgreSQL
from .sqlite import SQLite

__all__ = ["SECONDS_TO_BEGIN", "Adapter", "TransactionState", "adapter_for", "driver_of", "is_exhausted"]

_ADAPTERS: dict[str, type[Adapter]] = {"sqlite": SQLite, "postgresql": PostgreSQL}


def adapter_for(dialect: str) -> Adapter:
    """The adapter of a dialect; ValueError, with those there are, for one that has none."""
    try:
        return _ADAPTERS[dialect]()
    except KeyError:
        raise ValueError(
            f"uow has no adapter for {dialect!r} databases, only for: {', '.join(_ADAPTERS)}"
        ) from None
