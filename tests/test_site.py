"""The site of the documentation (`make docs`): built strictly, whole, and asking nothing of other servers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.pages import DOCS, ROOT
from tests.support.processes import python_environment
from tests.support.wait import LIMIT

# What a browser fetches by itself, by the attribute that names it; `a` is for people.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
# Only these of a link's relations are fetched.
RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}


class Page(HTMLParser):
    """What a page of the site links to, what it fetches, and where in it a link may lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        relations = set(given.get("rel", "").split())
        if tag in FETCHED and FETCHED[tag] in given and (tag != "link" or relations & RELATIONS):
            self.fetched.add(given[FETCHED[tag]])


def build(root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "docs" / "build.py"), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=python_environment({"NO_COLOR": "1"}),
        timeout=4 * LIMIT,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    built = build(ROOT, folder / "build")
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "build" / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_there(site: Path, pages: dict[Path, Page]) -> None:
    expected = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    expected |= {Path("index.html"), Path("changelog.html")}
    assert expected <= {path.relative_to(site) for path in pages}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    """In what the reader gets: the navigation and raw HTML too."""
    broken = []
    for path, page in pages.items():
        for link in page.links | page.fetched:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            # The page for unknown paths may be shown anywhere, so its links begin at the root.
            start = site if parts.path.startswith("/") else path.parent
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if not target.is_file() or (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    """No fonts, no scripts, no counters: the site works without the internet."""
    assert [link for page in pages.values() for link in page.fetched if urlsplit(link).netloc] == []
    for path in site.rglob("*.css"):
        named = re.findall(r"url\(([^)]*)\)|@import\s+([^;]+)", path.read_text(encoding="utf-8"))
        assert [name for pair in named for name in pair if "//" in name and "data:" not in name] == []


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("[gone](gone.md)", "docs/why.md: there is no gone.md"),
        ("[gone](lifecycle.md#gone)", "why.md"),
        ("[out](../../etc/passwd)", "docs/why.md: there is no ../../etc/passwd"),
    ],
)
def test_a_broken_link_ends_the_build(tmp_path: Path, link: str, said: str) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("README.md", "CHANGELOG.md", "config.toml"):
        shutil.copy(ROOT / name, root)
    for name in ("docs", "deploy", "examples", "benchmarks", "api", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    with (root / "docs" / "why.md").open("a") as page:
        page.write(f"\n{link}\n")
    built = build(root, tmp_path / "build")
    assert built.returncode == 1
    assert said in built.stderr
