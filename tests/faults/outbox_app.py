"""The processes of the proof of the outbox: a writer of units, and a relay that may be killed at any time."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from uow import Database
from uow.outbox import Backoff, Outbox, Relay, Webhook, event, publish

SUBJECTS = 12
TASKS = 8
SCHEMA = (
    "CREATE TABLE counters (subject INTEGER PRIMARY KEY, place INTEGER NOT NULL)",
    "CREATE TABLE kept (word VARCHAR(40) PRIMARY KEY, subject INTEGER NOT NULL, place INTEGER NOT NULL)",
    *(f"INSERT INTO counters VALUES ({subject}, 0)" for subject in range(SUBJECTS)),
)


@event("word.kept", subject="subjects/{subject}")
@dataclass
class Kept:
    subject: int
    word: str


class Undone(Exception):
    pass


def outbox_of(url: str, target: str) -> Outbox:
    return Outbox(Database(url, pool_size=TASKS + 2), [Webhook("receiver", target)], source="/proof")


async def write(url: str, seed: int, units: int) -> None:
    """Units of several tasks that publish, of which a third are undone; the first task is slow to commit."""
    outbox = outbox_of(url, "http://127.0.0.1:1/")

    async def task(number: int) -> None:
        random = Random(f"{seed}-{number}")
        for turn in range(units // TASKS):
            with suppress(Undone):
                async with outbox.database.new_unit() as unit:
                    word = f"{number}-{turn}"
                    await one_unit(unit.session, random, word, seconds=0.02 if number == 0 else 0.0)

    await asyncio.gather(*map(task, range(TASKS)))
    await outbox.database.dispose()


async def one_unit(session: AsyncSession, random: Random, word: str, *, seconds: float) -> None:
    """One or two events, and a row for each that says in which place it was committed.

    The place is taken when the events have their numbers, and the row that gives it is locked until the unit
    has committed: so places are the order of commits, whatever the outbox makes of it.
    """
    undone = random.random() < 1 / 3
    subjects = sorted(random.sample(range(SUBJECTS), random.randint(1, 2)))
    words = {subject: f"{word}-{subject}{'-undone' if undone else ''}" for subject in subjects}
    for subject in random.sample(subjects, len(subjects)):
        publish(Kept(subject, words[subject]))

    def take_places(sync_session: Session) -> None:
        await_only(asyncio.sleep(seconds))
        connection = sync_session.connection()
        for subject in subjects:
            given = {"subject": subject, "word": words[subject]}
            connection.execute(text("UPDATE counters SET place = place + 1 WHERE subject = :subject"), given)
            place = "SELECT place FROM counters WHERE subject = :subject"
            connection.execute(text(f"INSERT INTO kept SELECT :word, :subject, ({place})"), given)

    sqlalchemy_event.listen(session.sync_session, "before_commit", take_places)
    await asyncio.sleep(random.random() / 500)
    if undone:
        raise Undone


async def relay(url: str, target: str, seed: int) -> None:
    backoff = Backoff(first=0.02, longest=0.2, random=Random(seed))
    made = Relay(outbox_of(url, target), backoff=backoff, poll=0.1, timeout=5.0, max_attempts=10**6)
    sys.stdout.write(json.dumps("relaying") + "\n")
    sys.stdout.flush()
    await made.run()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", url, seed, units]:
            asyncio.run(write(url, int(seed), int(units)))
        case ["relay", url, target, seed]:
            asyncio.run(relay(url, target, int(seed)))
        case _:
            raise SystemExit(2)
