"""Build the site of these pages: `python docs/build.py FOLDER` (`make docs`).

The pages are written to be read in the repository, so they link to files beside `docs`. The site has
a page for each of those files: index.md is README.md, and sources are shown as they are. Whatever is
wrong with a link ends the build with a message.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONFIG = DOCS / "zensical.toml"
PLACES = {ROOT / "README.md": "index.md", ROOT / "CHANGELOG.md": "changelog.md"}
LANGUAGES = {".py": "python", ".toml": "toml", ".service": "ini", ".in": "text", ".lock": "text"}

# A fence of code, which is left as it is, or the target of a link.
_FENCE_OR_LINK = re.compile(
    r"(?P<fence>^(`{3,}).*?^\2$)|(?<=\]\()(?P<target>[^)\s]+)(?=\))", re.DOTALL | re.MULTILINE
)


class BrokenLink(Exception):
    """A link between files leads nowhere."""


class Staging:
    """The pages of the site as they are handed to its generator, each written once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: set[Path] = set()

    def write(self, source: Path) -> PurePosixPath:
        """The place of a file or folder of the repository in the site, with all that it links to."""
        place = _place(source)
        if source not in self._written:
            self._written.add(source)
            target = self._folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".md":
                target.write_text(self._page(source, place), encoding="utf-8")
            else:
                target.write_text(self._source(source, place), encoding="utf-8")
        return place

    def _page(self, source: Path, place: PurePosixPath) -> str:
        def moved(match: re.Match[str]) -> str:
            target = match["target"]
            if match["fence"] or target.startswith(("https://", "http://", "#")):
                return match[0]
            path, mark, anchor = target.partition("#")
            found = (source.parent / path).resolve()
            if not found.exists() or not found.is_relative_to(ROOT):
                raise BrokenLink(f"{source.relative_to(ROOT)}: there is no {target}")
            return _relative(self.write(found), place) + mark + anchor

        return _FENCE_OR_LINK.sub(moved, source.read_text(encoding="utf-8"))

    def _source(self, source: Path, place: PurePosixPath) -> str:
        title = f"# {source.relative_to(ROOT).as_posix()}\n\n"
        if source.is_dir():
            inside = sorted(each for each in source.iterdir() if each.suffix in LANGUAGES)
            return title + "".join(
                f"- [{each.name}]({_relative(self.write(each), place)})\n" for each in inside
            )
        language = LANGUAGES.get(source.suffix, "text")
        return f"{title}````{language}\n{source.read_text(encoding='utf-8')}````\n"


def _place(source: Path) -> PurePosixPath:
    if source in PLACES:
        return PurePosixPath(PLACES[source])
    if source.is_relative_to(DOCS) and source.suffix == ".md":
        return PurePosixPath(source.relative_to(DOCS).as_posix())
    path = PurePosixPath("source", source.relative_to(ROOT).as_posix())
    return path if path.suffix == ".md" else path.with_name(f"{path.name}.md")


def _relative(target: PurePosixPath, page: PurePosixPath) -> str:
    return os.path.relpath(target, page.parent)


def build(folder: Path) -> None:
    """Make `folder`/site; a warning of the generator is an error."""
    shutil.rmtree(folder, ignore_errors=True)
    staging = Staging(folder / "pages")
    for page in [*PLACES, *sorted(DOCS.rglob("*.md"))]:
        staging.write(page)
    shutil.copy(CONFIG, folder / CONFIG.name)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    subprocess.run([*command, "--config-file", str(folder / CONFIG.name)], check=True)


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]))
    except BrokenLink as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
