"""The pages of the documentation, and the programs in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
QUICKSTART = ROOT / "examples" / "quickstart.py"

BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; one with a title is a file of that name."""

    page: Path
    line: int
    language: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """All of a page's blocks, in their order."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield Block(page, text[: match.start(3)].count("\n"), match[1], match[2] or "", match[3])


def programs(page: Path) -> list[Block]:
    """What a page runs, one after the other, from where the quickstart's program ends."""
    return [
        block
        for block in blocks(page)
        if block.language == "python" and not block.title and block.text != quickstart()
    ]


def files(page: Path) -> dict[str, str]:
    """The files that a page tells its reader to write."""
    return {block.title: block.text for block in blocks(page) if block.title}


def quickstart() -> str:
    """The program of README.md and docs/quickstart.md."""
    return QUICKSTART.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    """Its path, as a person says it."""
    return page.relative_to(ROOT).as_posix()


def run(block: Block, namespace: dict[str, Any]) -> None:
    """Execute a block as if it stood in its page at this line, so that a traceback points there."""
    source = "\n" * block.line + block.text
    exec(compile(source, str(block.page), "exec"), namespace)
