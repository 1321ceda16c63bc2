"""`relay` and `outbox`: sending the events, and looking after those that could not be sent."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Literal, TypeVar

import typer

from api import migrations
from api.commands.common import (
    MISUSED,
    SCHEMA,
    UNAVAILABLE,
    AsJson,
    Config,
    echo_json,
    echo_table,
    examples,
    fail,
    read_settings,
)
from api.database import run_with_database
from api.settings import Origin, Settings
from uow import Database
from uow.outbox import Owed, Which, discard, owed, retry

commands = typer.Typer()
outbox = typer.Typer(
    name="outbox",
    help="Show the events that are owed, send them again, or give them up.",
    no_args_is_help=True,
)
commands.add_typer(outbox)

T = TypeVar("T")
_STOPS = (signal.SIGTERM, signal.SIGINT)


class StateOption(StrEnum):
    """The states of an event, on the command line."""

    DEAD = "dead"
    PENDING = "pending"
    ALL = "all"


_STATES: dict[StateOption, Literal["pending", "dead"] | None] = {
    StateOption.DEAD: "dead",
    StateOption.PENDING: "pending",
    StateOption.ALL: None,
}
State = Annotated[StateOption, typer.Option(help="dead: all attempts failed; pending: to be sent; or all.")]
To = Annotated[str | None, typer.Option(help="Only those that are owed to this destination.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many to show, the oldest first.")]
Numbers = Annotated[
    list[int] | None, typer.Argument(help="The numbers of events, as `outbox list` has them.")
]
All = Annotated[bool, typer.Option("--all", help="All dead ones, of the destination if one is named.")]
OfState = Annotated[
    StateOption | None,
    typer.Option("--state", help="With --all and --destination: those that are pending, or all states."),
]


@commands.command(epilog=examples("python -m api relay", "python -m api relay --config production.toml"))
def relay(config: Config = None) -> None:
    """Send the events to their destinations, until SIGTERM or Ctrl-C.

    Then it begins nothing more, finishes what is under way, and ends with 0. Any number may run at a time.
    """
    settings, origin = read_settings(config)
    if not settings.outbox.destinations:
        lack = "are none, so there is nothing to send: see docs/exactly-once.md"
        raise fail(origin.wrong(("outbox", "destinations"), lack), MISUSED)
    _with_events(settings, origin, "relay", lambda database: _relay(settings, database))


async def _relay(settings: Settings, database: Database) -> None:
    made = settings.outbox.relay_of(settings.outbox.opened(database), listens=not settings.database.pooler)
    loop = asyncio.get_running_loop()
    for number in _STOPS:
        loop.add_signal_handler(number, made.stop)
    names = ", ".join(each.name for each in settings.outbox.destinations)
    typer.echo(f"The events of {settings.database.shown} are sent to {names}.", err=True)
    sys.stderr.flush()
    await made.run()


@outbox.command(
    "list", epilog=examples("python -m api outbox list", "python -m api outbox list --state all --json")
)
def list_(
    config: Config = None,
    state: State = StateOption.DEAD,
    destination: To = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """Print events that are owed: number, state, destination, type, subject, attempts, time, last error.

    Standard error tells of those that wait for a destination that is not configured: nobody sends them.
    """
    settings, origin = read_settings(config)
    which = Which(destination=destination, state=_STATES[state])

    async def look(database: Database) -> tuple[list[Owed], list[str]]:
        async with database.new_unit(read_only=True, name="outbox list") as unit:
            rows = await owed(unit.session, which, most=limit)
            return rows, await settings.outbox.not_for_us(unit.session, Which(state="pending"))

    found, not_for_us = _with_events(settings, origin, "outbox list", look)
    if as_json:
        echo_json([asdict(each) for each in found])
    elif found:
        echo_table([_cells(each) for each in found])
    for each in not_for_us:
        typer.echo(each, err=True)


def _cells(of: Owed) -> tuple[str, ...]:
    attempts = f"{of.attempts} attempts"
    return str(of.number), of.state, of.destination, of.type, of.subject, attempts, of.time, of.error or ""


@outbox.command(
    "retry", epilog=examples("python -m api outbox retry 17 18", "python -m api outbox retry --all")
)
def retry_(
    numbers: Numbers = None,
    config: Config = None,
    every: All = False,
    destination: To = None,
    state: OfState = None,
) -> None:
    """Send events again as soon as may be, with all attempts before them.

    One that was dead may then arrive after later ones of its subject. Nothing is changed where one of them is
    owed to a destination that is not configured.
    """
    _change(_Chosen(numbers, every, destination, state), config, "retry", "will be sent again")


@outbox.command(
    "discard",
    epilog=examples(
        "python -m api outbox discard 17",
        "python -m api outbox discard --all",
        "python -m api outbox discard --all --state all --destination old-shop",
    ),
)
def discard_(
    numbers: Numbers = None,
    config: Config = None,
    every: All = False,
    destination: To = None,
    state: OfState = None,
) -> None:
    """Never send events: they are removed. One that is being sent at this moment may yet arrive."""
    _change(_Chosen(numbers, every, destination, state), config, "discard", "are discarded")


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which events the command line names."""

    numbers: list[int] | None
    every: bool
    destination: str | None
    state: StateOption | None

    def which(self) -> Which:
        """The same for the outbox; what does not go together is an error of the command line."""
        if bool(self.numbers) == self.every:
            raise typer.BadParameter("name the numbers of events, or give --all; not both")
        if self.state is not None and not (self.every and self.destination):
            # What waits for all others would be given up by one word too few.
            raise typer.BadParameter("--state goes with --all and --destination")
        state = _STATES[self.state or StateOption.DEAD] if self.every else None
        return Which(numbers=self.numbers, destination=self.destination, state=state)


def _change(chosen: _Chosen, config: Config, what: str, done: str) -> None:
    which, numbers = chosen.which(), set(chosen.numbers or ())
    settings, origin = read_settings(config)

    async def change(database: Database) -> int:
        async with database.new_unit(name=f"outbox {what}") as unit:
            if what == "discard":
                return await discard(unit.session, which)
            if not_for_us := await settings.outbox.not_for_us(unit.session, which):
                raise fail("\n".join(["Nothing was changed.", *not_for_us]))
            return await retry(unit.session, which)

    changed = _with_events(settings, origin, f"outbox {what}", change)
    typer.echo(f"{changed} {done}.")
    if changed < len(numbers):
        raise fail(f"{len(numbers) - changed} of these numbers are no events that are owed.")


def _with_events(
    settings: Settings, origin: Origin, name: str, work: Callable[[Database], Awaitable[T]]
) -> T:
    """What the work answers; what keeps it from the table of the events ends the command."""
    shown, file = settings.database.shown, settings.database.file
    if settings.database.in_memory:
        raise fail(f"{shown} is in the memory of one process: nobody else finds its events", MISUSED)
    if file is not None and not file.exists():  # to look inside would make it
        raise fail(f"{shown}: cannot {name}: {migrations.lack_of(None)}", SCHEMA)

    async def checked(database: Database) -> T:
        async with database.new_unit(read_only=True, name=name) as unit:
            revision = await unit.session.run_sync(lambda each: migrations.revision_of(each.connection()))
        if lack := migrations.lack_of(revision):
            raise fail(f"{shown}: cannot {name}: {lack}", SCHEMA)
        return await work(database)

    try:
        return run_with_database(settings, checked)
    except migrations.FROM_OUTSIDE as error:
        reason = f"{shown}: cannot {name}: {migrations.reason_of(error)}"
        raise fail(origin.wrong(("database", "url"), reason), UNAVAILABLE) from None
