"""What a hazard is, and the decorator that makes one. `every.py` has the list of all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.hazards.findings import Finding
from benchmarks.hazards.stage import Stage

Engine = Literal["postgresql", "sqlite"]
BOTH: tuple[Engine, ...] = ("postgresql", "sqlite")
Check = Callable[[Stage], Finding]


@dataclass(frozen=True)
class Hazard:
    """One way to go wrong, on one engine.

    `env` is more for the environment of the server; `fresh` asks for one that has served nobody.
    """

    title: str
    says: str
    check: Check
    engine: Engine
    env: Mapping[str, str] = field(default_factory=dict)
    graceful_shutdown: int | None = None
    fresh: bool = False

    @property
    def name(self) -> str:
        """What the command line and the tests call it."""
        suffix = "-sqlite" if self.engine == "sqlite" else ""
        return self.check.__name__.replace("_", "-") + suffix

    @property
    def needs(self) -> tuple[object, ...]:
        """Hazards that need the same can share a server."""
        alone = self.name if self.fresh else None
        return self.engine, tuple(self.env.items()), self.graceful_shutdown, alone


_listed: list[Hazard] = []


def of_module(module: str) -> list[Hazard]:
    """The hazards of one module, in the order of its text."""
    return [each for each in _listed if each.check.__module__ == module]


def hazard(
    title: str,
    says: str,
    *,
    engines: tuple[Engine, ...] = ("postgresql",),
    env: Mapping[str, str] | None = None,
    graceful_shutdown: int | None = None,
    fresh: bool = False,
) -> Callable[[Check], Check]:
    """Put a function on the list, once for each engine."""

    def listed(check: Check) -> Check:
        for engine in engines:
            where = ", SQLite" if engine == "sqlite" else ""
            _listed.append(Hazard(title + where, says, check, engine, env or {}, graceful_shutdown, fresh))
        return check

    return listed
