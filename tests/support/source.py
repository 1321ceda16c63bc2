"""Python source as the architecture tests see it: files, what they import, the names they use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path


class Source:
    """One file of the tree; it is parsed when its syntax is first asked for."""

    def __init__(self, root: Path, path: Path) -> None:
        self.name = path.relative_to(root).as_posix()
        self.text = path.read_text(encoding="utf-8")
        parts = path.relative_to(root).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.module = ".".join(parts[:-1] if self.is_package else parts)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    def at(self, line: int, what: str) -> str:
        return f"{self.name}:{line}: {what}"

    def imports(self) -> Iterator[tuple[int, str]]:
        """Every module that is imported, anywhere in the file, and every name taken from one."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                yield node.lineno, base
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Call) and name_of(node.func) in {
                "import_module",
                "__import__",
            }:
                literals = (each for each in node.args if isinstance(each, ast.Constant))
                yield from ((node.lineno, str(each.value)) for each in literals)

    def _absolute(self, node: ast.ImportFrom) -> str:
        package = self.module.split(".")
        keep = len(package) - node.level + (1 if self.is_package else 0)
        base = package[:keep] if node.level else []
        return ".".join([*base, *([node.module] if node.module else [])])

    def imported(self, *modules: str) -> Iterator[str]:
        """One offence for each line that imports one of the modules, or something inside it."""
        lines: dict[int, str] = {}
        for line, name in self.imports():
            if any(name == module or name.startswith(f"{module}.") for module in modules):
                lines.setdefault(line, name)
        yield from (self.at(line, f"imports {name}") for line, name in lines.items())


def sources(root: Path, *folders: str) -> Iterator[Source]:
    """The files of the folders; one that is not there holds none."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            yield Source(root, path)


def name_of(node: ast.AST) -> str:
    """The last part of a dotted name: `sa.select` is `select`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def names_in(*nodes: ast.AST) -> set[str]:
    return {name_of(each) for node in nodes for each in ast.walk(node)} - {""}
