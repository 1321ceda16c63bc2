"""What a turn costs a call of a session when nobody else is inside: `python -m benchmarks.turns`."""

import asyncio
import time

from uow._turns import Turns

CALLS = 200_000


def nanoseconds(turns: Turns) -> float:
    """Processor time of one turn, the best of five rounds."""
    rounds = []
    for _ in range(5):
        began = time.process_time_ns()
        for _ in range(CALLS):
            turns.take()
            turns.give()
        rounds.append((time.process_time_ns() - began) / CALLS)
    return min(rounds)


async def main() -> None:
    for asynchronous in (True, False):
        kind = "an async" if asynchronous else "a sync"
        print(f"{nanoseconds(Turns('benchmark', asynchronous=asynchronous)):.0f} ns a turn of {kind} session")


if __name__ == "__main__":
    asyncio.run(main())
