"""The pairs of programs in `examples/moving`, what is known of each, and the environments they run in.

`python -m tests.moving` writes them into their pages, with what changes between them and what was measured.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.hazards.every import HAZARDS
from benchmarks.hazards.report import cell, lines_of, load_results
from benchmarks.hazards.run import PeerResult
from tests.support.pages import DOCS, ROOT

PAGES = DOCS / "moving"
FOLDER = ROOT / "examples" / "moving"


@dataclass(frozen=True)
class Seen:
    """What a client sees of one program, and then finds in the database.

    `early`: an answer arrives while COMMIT is held. `full`: how many items there are when the fourth was
    answered with 409. `refused`: the status when COMMIT is refused.
    """

    early: bool = False
    full: int = 3
    refused: int = 409


@dataclass(frozen=True)
class Pair:
    """Two programs that are one app, and a third that is half way between.

    `measured` names the peer in the results of the hazards, `environment` what it is installed in.
    """

    name: str
    measured: str
    before: Seen
    environment: str | None = "peers"
    after_needs_it: bool = False
    factory: str = "moving"
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def page(self) -> Path:
        return PAGES / f"from-{self.name.replace('_', '-')}.md"

    def program(self, stage: str) -> Path:
        return ROOT / self.paths.get(stage, f"examples/moving/{self.name}_{stage}.py")

    def python(self, stage: str) -> Path:
        """The interpreter that a stage needs: the tests' own, unless it imports the peer."""
        alone = stage == "after" and not self.after_needs_it
        if self.environment is None or alone:
            return Path(sys.executable)
        return Path(f"{sys.prefix}-{self.environment}", "bin", "python")

    def diff(self) -> str:
        return diff(self.program("before"), self.program("after"))

    def changed_lines(self) -> int:
        return changed_lines(self.diff())


PAIRS = (
    Pair(
        "depends",
        "depends",
        Seen(early=True, full=4, refused=200),
        environment=None,
        paths={"before": "examples/depends.py"},
    ),
    Pair("fastapi_sqlalchemy", "fastapi_sqlalchemy", Seen(full=4, refused=500)),
    Pair("fastapi_async_sqlalchemy", "fastapi_async_sqlalchemy", Seen(full=4, refused=500)),
    Pair("fastapi_sqla", "fastapi_sqla", Seen(refused=500), environment="peers-fastapi-sqla"),
    Pair(
        "advanced_alchemy",
        "advanced_alchemy",
        Seen(early=True, refused=201),
        after_needs_it=True,
    ),
    Pair("context_async_sqlalchemy", "context_async", Seen(refused=500)),
)
PURE_ASGI = Pair(
    "context_async_sqlalchemy",
    "context_async_asgi",
    Seen(early=True, refused=201),
    factory="moving_from_pure_asgi",
)


def diff(before: Path, after: Path) -> str:
    """What changes, as `diff -U2` shows it."""
    return "".join(
        difflib.unified_diff(
            before.read_text(encoding="utf-8").splitlines(keepends=True),
            after.read_text(encoding="utf-8").splitlines(keepends=True),
            before.relative_to(ROOT).as_posix(),
            after.relative_to(ROOT).as_posix(),
            n=2,
        )
    )


def changed_lines(diff: str) -> int:
    """Lines taken out and lines put in: blank ones, imports and docstrings count like all others."""
    _, _, *lines = diff.splitlines()
    return sum(line.startswith(("-", "+")) for line in lines)


def differences(peer: str, results: Mapping[str, PeerResult]) -> str:
    """The hazards that end otherwise with a peer than with `uow`, as the table of its page."""
    theirs, ours = results[peer].findings, results["uow"].findings
    rows: list[Sequence[str]] = [("", "before", "after")]
    rows += [
        (hazard.title, cell(theirs[hazard.name]), cell(ours[hazard.name]))
        for hazard in HAZARDS
        if theirs[hazard.name].verdict != ours[hazard.name].verdict
    ]
    return lines_of(rows)


def current(pair: Pair, text: str, results: Mapping[str, PeerResult]) -> str:
    """The text of a page with its programs, their difference and its measured table as they are now."""
    for stage in ("before", "after"):
        program = pair.program(stage)
        head = f'```python title="{program.relative_to(ROOT).as_posix()}"\n'
        text = _with_block(text, head, program.read_text(encoding="utf-8"))
    text = _with_block(text, "```diff\n", pair.diff())
    measured = f"{differences(pair.measured, results)}\n"
    return re.sub(r"^\|  \| before \| after \|\n(\|.*\n)+", lambda _: measured, text, flags=re.MULTILINE)


def _with_block(text: str, head: str, inside: str) -> str:
    pattern = rf"^{re.escape(head)}(.*?)^```$"
    return re.sub(pattern, lambda _: f"{head}{inside}```", text, flags=re.DOTALL | re.MULTILINE)


def counted(text: str) -> str:
    """The text of the index with the number of changed lines in each row."""
    for pair in PAIRS:
        row = rf"^(\| \[.*\]\({re.escape(pair.page.name)}\) \| .* \|) \d+ \|$"
        text = re.sub(row, rf"\1 {pair.changed_lines()} |", text, flags=re.MULTILINE)
    return text


def main() -> None:
    index = PAGES / "index.md"
    index.write_text(counted(index.read_text(encoding="utf-8")), encoding="utf-8")
    for pair in PAIRS:
        text = pair.page.read_text(encoding="utf-8")
        pair.page.write_text(current(pair, text, load_results()), encoding="utf-8")


if __name__ == "__main__":
    main()
