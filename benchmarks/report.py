"""The results as a table."""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

from benchmarks.cases import CASES
from benchmarks.drive import CONCURRENCY, Variant

_HEAD = (
    "case",
    "engine",
    "variant",
    "CPU us",
    "wall us",
    "CPU times the first",
    "middle half",
    "first / this",
)
_PACKAGES = ("sqlalchemy", "starlette", "fastapi", "aiosqlite", "asyncpg", "uvloop")


@dataclass(frozen=True)
class Row:
    """One variant of one case: the medians, and how its chunks compare with the first variant's."""

    case: str
    engine: str
    variant: str
    cpu: float
    wall: float
    ratio: float
    spread: tuple[float, float]

    def cells(self) -> tuple[str, ...]:
        low, high = self.spread
        return (
            self.case,
            self.engine,
            self.variant,
            f"{self.cpu:.1f}",
            f"{self.wall:.1f}",
            f"{self.ratio:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{1 / self.ratio:.2f}",
        )


def rows_of(case: str, engine: str, variants: list[Variant]) -> list[Row]:
    """The rows of a measured case: ratios are taken round by round, then their median."""
    first = variants[0].cpu
    rows = []
    for variant in variants:
        ratios = [mine / theirs for mine, theirs in zip(variant.cpu, first, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        cpu, wall = median(variant.cpu), median(variant.wall)
        rows.append(Row(case, engine, variant.name, cpu, wall, median(ratios), (low, high)))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table that also reads well on a terminal."""
    lines = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def write(rows: list[Row], path: Path, seconds: float) -> None:
    """The whole result as a file, with what one must know to read it."""
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    cases = "\n".join(f"- {name}: {meaning}" for name, meaning in CASES.items())
    python = f"{platform.python_implementation()} {platform.python_version()}"
    text = f"""# Benchmark

Written by `python -m benchmarks`; how it is measured is said in `benchmarks/__init__.py`.
In one process, {CONCURRENCY} requests at a time, {seconds:g} s for each case and engine,
on {os.cpu_count()} cores, {python} on {sys.platform}, {packages}.

{cases}

"CPU times the first" is the median, over all rounds, of a variant's processor time divided by that of
the first variant of its case; half of the rounds lie in "middle half". "first / this" is its inverse:
above 1 is faster than the first. Compare ratios only: the microseconds are those of one machine at one
time.

{table(rows)}
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
