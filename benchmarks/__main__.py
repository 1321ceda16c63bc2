"""The command line: `python -m benchmarks --help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.cases import CASES, ENGINES, urls, variants_of
from benchmarks.drive import measure
from benchmarks.report import Row, rows_of, table, write

RESULTS = Path(__file__).parent / "results" / "latest.md"


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=" ".join(f"{k}: {v}." for k, v in CASES.items())
    )
    parser.add_argument("--case", choices=CASES, action="append", help="this case only; may be given again")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="this engine only")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each case and engine (20)")
    parser.add_argument(
        "--output", type=Path, help="where the table goes; without it results/latest.md, if all is run"
    )
    return parser.parse_args(given)


async def run(case: str, engine: str, url: str, seconds: float) -> list[Row]:
    async with variants_of(case, url) as variants:
        await measure(variants, seconds, lambda text: print(f"{case} {engine}: {text}", file=sys.stderr))
    rows = rows_of(case, engine, variants)
    print(table(rows), flush=True)
    return rows


def main(given: Sequence[str]) -> None:
    options = arguments(given)
    cases = options.case or list(CASES)
    engines = tuple(options.engine or ENGINES)
    rows: list[Row] = []
    needed = engines if set(cases) - {"N0"} else ("sqlite",)
    with urls(needed) as found:
        for case in cases:
            # A request that touches no database is the same on all of them.
            where = {"no database": "sqlite://"} if case == "N0" else found
            for engine, url in where.items():
                rows += uvloop.run(run(case, engine, url, options.seconds))
    whole = not options.case and not options.engine
    path = options.output or (RESULTS if whole else None)
    if path is not None:
        write(rows, path, options.seconds)
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
