"""The results as a table, and where they are kept."""

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.hazards.catalogue import Hazard
from benchmarks.hazards.every import HAZARDS
from benchmarks.hazards.findings import VERDICTS, Finding
from benchmarks.hazards.peers import PEERS, Peer
from benchmarks.hazards.run import PeerResult

RESULTS = Path(__file__).parent
DOCUMENT = RESULTS.parent.parent / "docs" / "why.md"
BEGIN = "<!-- from here to the end of the list: written by `make hazards` -->"
END = "<!-- the end of the list -->"
_NAMES = {
    "python": "Python",
    "fastapi": "FastAPI",
    "starlette": "Starlette",
    "sqlalchemy": "SQLAlchemy",
    "uvicorn": "uvicorn",
    "asyncpg": "asyncpg",
    "psycopg": "psycopg",
    "aiosqlite": "aiosqlite",
    "postgresql": "PostgreSQL",
    "sqlite": "SQLite",
}
_ALONE = ("lost", "early", "kept", "two answers", "task ran", "starved", "leak", "hang")
"""Verdicts that stand out in the table: silent, or with an effect beyond the request."""

_BOLD = "What stands in bold happens without a word to the client, or reaches beyond its request."


def load_results(folder: Path = RESULTS) -> dict[str, PeerResult]:
    """What earlier runs have found, by peer."""
    path = folder / "results.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: PeerResult(
            each["date"],
            each["versions"],
            {hazard: Finding(**finding) for hazard, finding in each["findings"].items()},
        )
        for name, each in found.items()
    }


def save(results: Mapping[str, PeerResult], folder: Path = RESULTS) -> None:
    """Keep them, for later runs of single peers, and write the report, and the document's part of it."""
    known = {peer.name: dataclasses.asdict(results[peer.name]) for peer in PEERS if peer.name in results}
    text = json.dumps(known, indent=1)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    (folder / "results.md").write_text(report(results), encoding="utf-8")
    if folder == RESULTS:
        DOCUMENT.write_text(with_part(DOCUMENT.read_text(encoding="utf-8"), results), encoding="utf-8")


def with_part(text: str, results: Mapping[str, PeerResult]) -> str:
    """The document with its part of the results between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    part = f"{measured(results)}\n\n{table(results)}\n\n{legend()}"
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def measured(results: Mapping[str, PeerResult]) -> str:
    """When, and with which versions; a peer that has another one is named."""
    peers = peers_of(results)
    parts = []
    for package, name in _NAMES.items():
        by_version: dict[str, list[str]] = {}
        for peer in peers:
            by_version.setdefault(results[peer.name].versions[package], []).append(peer.title)
        common = max(by_version, key=lambda version: len(by_version[version]))
        others = [f"{', '.join(by_version[each])}: {each}" for each in by_version if each != common]
        parts.append(f"{name} {common}" + (f" ({'; '.join(others)})" if others else ""))
    dates = " and ".join(sorted({results[peer.name].date for peer in peers}))
    return "\n".join(textwrap.wrap(f"Measured on {dates} with {', '.join(parts)}.", 110))


def peers_of(results: Mapping[str, PeerResult]) -> list[Peer]:
    return [peer for peer in PEERS if peer.name in results]


def title(peer: Peer, result: PeerResult) -> str:
    """The name of a peer with the version that was measured."""
    version = result.versions.get(peer.package or "")
    return f"{peer.title} {version}" if version else peer.title


def cell(finding: Finding | None) -> str:
    if finding is None:
        return ""
    silent = any(word in _ALONE for word in finding.verdict.split(", "))
    return f"**{finding.verdict}**" if silent else finding.verdict


def lines_of(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first row the head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def table(results: Mapping[str, PeerResult], hazards: Sequence[Hazard] | None = None) -> str:
    """Hazards by peers."""
    peers = peers_of(results)
    head = ["", *(title(peer, results[peer.name]) for peer in peers)]
    return lines_of(
        [
            head,
            *(
                [hazard.title, *(cell(results[peer.name].findings.get(hazard.name)) for peer in peers)]
                for hazard in (HAZARDS if hazards is None else hazards)
            ),
        ]
    )


def seen(results: Mapping[str, PeerResult]) -> str:
    """What was seen, hazard by hazard; peers with the same result stand together."""
    return "\n".join(
        f"### {hazard.title}\n\n{hazard.says}\n\n{seen_of(hazard, results)}\n" for hazard in HAZARDS
    )


def seen_of(hazard: Hazard, results: Mapping[str, PeerResult]) -> str:
    peers = peers_of(results)
    together: dict[Finding, list[str]] = {}
    for peer in peers:
        finding = results[peer.name].findings.get(hazard.name)
        if finding is not None:
            together.setdefault(finding, []).append(peer.title)
    return "\n".join(
        f"- {'all' if len(names) == len(peers) else ', '.join(names)}: {finding.verdict} ({finding.seen})"
        for finding, names in together.items()
    )


def legend() -> str:
    words = "\n".join(f"- {word}: {meaning}." for word, meaning in VERDICTS.items())
    return (
        f"{words}\n\nWhat stands in bold happens without a word to the client, or reaches beyond its request."
    )


def report(results: Mapping[str, PeerResult]) -> str:
    return f"""# Hazards

Written by `python -m benchmarks.hazards`; how it is done is said in `benchmarks/hazards/__init__.py`.
{measured(results)}

{table(results)}

{legend()}

## What was seen

{seen(results)}"""
