"""The rules that keep the packages apart and the files small, as tests over the source.

A rule is a function from the root of a source tree to its offences. It is asked twice: of this
checkout, where it must find none, and of a small tree that breaks it, where it must find one.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.source import Source, name_of, names_in, sources

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES = 400
FUNCTION_LINES = 40
CALL_LINES = 25

OPTIONAL_MODULES = {"uow.testing", "uow.retry", "uow.outcome", "uow.idempotency", "uow.outbox"}
FEATURE_FILES = {"router", "schemas", "service", "models", "repository", "errors"}
QUERY = re.compile(
    r"select|insert|update|delete|exists|union(_all)?|intersect(_all)?|except_(all)?|(outer)?join"
    r"|values|lambda_stmt|bindparam|literal_column|case|(joined|selectin|subquery)load|func|text"
)
# A mapped class names its defaults and constraints with these two; there they query nothing.
IN_MODELS = {"func", "text"}
MADE_AT_IMPORT = re.compile(
    r"(async_)?engine_from_config|create_(async_)?engine|(async_)?(sessionmaker|scoped_session)"
    r"|Database|from_engines|create_app|\w*Settings|(get|load|read)_settings"
)

Rule = Callable[[Path], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def features(root: Path) -> dict[str, dict[str, Source]]:
    """The feature folders of the service: name of the folder to its files."""
    found: dict[str, dict[str, Source]] = {}
    for source in sources(root, "api"):
        _, *inside = source.name.removesuffix(".py").split("/")
        if len(inside) == 2:
            found.setdefault(inside[0], {})[inside[1]] = source
    return {name: files for name, files in found.items() if FEATURE_FILES & files.keys()}


def feature_files(root: Path, *names: str) -> Iterator[Source]:
    for files in features(root).values():
        yield from (files[name] for name in names if name in files)


@rule
def uow_knows_neither_the_service_nor_fastapi(root: Path) -> Iterator[str]:
    for source in sources(root, "uow"):
        framework = () if source.module == "uow.fastapi" else ("fastapi",)
        yield from source.imported("api", *framework)


@rule
def nothing_that_ships_imports_tests_benchmarks_or_examples(root: Path) -> Iterator[str]:
    for source in sources(root, "uow", "api"):
        yield from source.imported("tests", "benchmarks", "examples")


@rule
def optional_modules_are_imported_by_no_module_of_uow(root: Path) -> Iterator[str]:
    for source in sources(root, "uow"):
        own = {name for name in OPTIONAL_MODULES if f"{source.module}.".startswith(f"{name}.")}
        yield from source.imported(*(OPTIONAL_MODULES - own))


@rule
def context_variables_are_the_place_and_the_savepoint(root: Path) -> Iterator[str]:
    allowed = ["uow._context", "uow._turns"]
    for source in sources(root, "uow"):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and name_of(node.func) == "ContextVar":
                if source.module in allowed:
                    allowed.remove(source.module)
                else:
                    yield source.at(node.lineno, "makes a context variable of its own")


@rule
def features_have_the_same_files(root: Path) -> Iterator[str]:
    every = set().union(FEATURE_FILES, {"__init__"}, *features(root).values())
    for name, files in features(root).items():
        if missing := sorted(every - files.keys()):
            yield f"api/{name}: has no {', '.join(f'{file}.py' for file in missing)}"


@rule
def routers_speak_http_only(root: Path) -> Iterator[str]:
    for source in feature_files(root, "router"):
        yield from source.imported("sqlalchemy", "uow.current_session", "uow.current_sync_session")
        yield from (source.at(line, name) for line, name in queries(source) if name == "select")


@rule
def services_know_no_http(root: Path) -> Iterator[str]:
    for source in feature_files(root, "service"):
        yield from source.imported("starlette", "fastapi")


@rule
def repositories_hold_every_query(root: Path) -> Iterator[str]:
    for source in feature_files(root, "service", "schemas", "errors", "models"):
        allowed = IN_MODELS if source.module.endswith(".models") else set[str]()
        for line, name in queries(source):
            if name not in allowed:
                yield source.at(line, f"uses {name}")


def queries(source: Source) -> Iterator[tuple[int, str]]:
    """Query constructs that are taken from SQLAlchemy, and a `select` taken from anywhere."""
    modules = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found = (each for each in node.names if each.name.partition(".")[0] == "sqlalchemy")
            modules |= {each.asname or "sqlalchemy" for each in found}
        elif isinstance(node, ast.ImportFrom):
            theirs = (node.module or "").partition(".")[0] == "sqlalchemy"
            for alias in node.names:
                if alias.name == "select" or (theirs and QUERY.fullmatch(alias.name)):
                    yield node.lineno, alias.name
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and QUERY.fullmatch(node.attr) and modules & names_in(node):
            yield node.lineno, node.attr


@rule
def no_session_passes_through_depends(root: Path) -> Iterator[str]:
    for source in sources(root, "uow", "api"):
        lines = set()
        for node in ast.walk(source.tree):
            for place in carriers(node):
                names = names_in(*place)
                if "Depends" in names and any("session" in name.lower() for name in names):
                    lines.add(place[0].lineno)
        yield from (source.at(line, "passes a session through Depends") for line in sorted(lines))


def carriers(node: ast.AST) -> Iterator[tuple[ast.expr | ast.arg, ...]]:
    """Where a dependency is declared: a call, an annotation, an argument and its default."""
    if isinstance(node, ast.Call) and name_of(node.func) == "Depends":
        yield (node,)
    if isinstance(node, ast.Subscript) and name_of(node.value) == "Annotated":
        yield (node,)
    if isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        yield from zip(reversed(positional), reversed(node.defaults), strict=False)
        for argument, default in zip(node.kwonlyargs, node.kw_defaults, strict=True):
            if default is not None:
                yield argument, default


@rule
def only_the_settings_read_the_environment(root: Path) -> Iterator[str]:
    readers = {"environ", "environb", "getenv", "getenvb"}
    for source in sources(root, "api"):
        if source.module == "api.settings":
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and node.attr in readers and "os" in names_in(node):
                yield source.at(node.lineno, f"reads os.{node.attr}")
        yield from source.imported(*(f"os.{name}" for name in readers))


@rule
def nothing_is_made_at_import(root: Path) -> Iterator[str]:
    for source in sources(root, "uow", "api"):
        for node in at_import(source.tree):
            if isinstance(node, ast.Call) and MADE_AT_IMPORT.fullmatch(name_of(node.func)):
                yield source.at(node.lineno, f"calls {name_of(node.func)} when it is imported")


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported; the bodies of functions and classes do not count."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield child
            yield from at_import(child)


@rule
def files_are_short(root: Path) -> Iterator[str]:
    for source in sources(root, "uow", "api", "tests", "benchmarks", "examples"):
        if (lines := len(source.text.splitlines())) > FILE_LINES:
            yield source.at(lines, f"{lines} lines, more than {FILE_LINES}")


@rule
def functions_are_short(root: Path) -> Iterator[str]:
    for source in sources(root, "uow", "api", "tests", "benchmarks", "examples"):
        for function in functions(source.tree):
            yield from longer_than(FUNCTION_LINES, source, function)


@rule
def a_middleware_call_fits_on_a_screen(root: Path) -> Iterator[str]:
    for source in sources(root, "uow"):
        if source.module == "uow.middleware":
            for function in functions(source.tree):
                if function.name == "__call__":
                    yield from longer_than(CALL_LINES, source, function)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def longer_than(
    limit: int, source: Source, function: ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[str]:
    """Lines from `def` to the end of the body; a docstring's own lines do not count."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    if lines > limit:
        yield source.at(function.lineno, f"{function.name} has {lines} lines, more than {limit}")


EXCEPTION = re.compile(
    r"(type:\s*ignore|pyright:\s*ignore)(\[[^\]]*\])?"
    r"|noqa(:\s*[A-Z]+\d+([,\s]+[A-Z]+\d+)*)?"
    r"|pragma:\s*no\s*(cover|branch)",
    re.IGNORECASE,
)


@rule
def every_exception_to_a_check_says_why(root: Path) -> Iterator[str]:
    for source in sources(root, "uow", "api", "tests", "benchmarks", "examples"):
        if EXCEPTION.search(source.text) is None:
            continue  # most files have none, and to take one apart costs more than to search it
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
            if token.type == tokenize.COMMENT and (found := [*EXCEPTION.finditer(token.string)]):
                reason = token.string[found[-1].end() :]
                if len(re.findall(r"\w+", reason)) < 2:
                    yield source.at(token.start[0], f"no reason after {found[-1][0]!r}")


def long(name: str, lines: int) -> str:
    return f"def {name}(self):\n" + "    pass\n" * (lines - 1)


# Each rule with files that break it: the name of the file, and what is in it.
OFFENCES: dict[Rule, list[tuple[str, str]]] = {
    uow_knows_neither_the_service_nor_fastapi: [
        ("uow/database.py", "from fastapi import FastAPI"),
        ("uow/engines/sqlite.py", "import api.items"),
        ("uow/_unit.py", "def f():\n    import fastapi"),
    ],
    nothing_that_ships_imports_tests_benchmarks_or_examples: [
        ("uow/_unit.py", "import tests.kit"),
        ("api/app.py", "from benchmarks import run"),
        ("api/app.py", "import importlib\nimportlib.import_module('examples.quickstart')"),
    ],
    optional_modules_are_imported_by_no_module_of_uow: [
        ("uow/_unit.py", "from . import outbox"),
        ("uow/testing/_probe.py", "from .. import outbox"),
        ("uow/retry.py", "from .outcome import ask"),
        ("uow/__init__.py", "from .testing import client"),
        ("uow/engines/sqlite.py", "from ..idempotency import Key"),
    ],
    context_variables_are_the_place_and_the_savepoint: [
        ("uow/_unit.py", "x = ContextVar('x')"),
        ("uow/_context.py", "import contextvars as c\nx = c.ContextVar('x'), c.ContextVar('y')"),
    ],
    features_have_the_same_files: [
        ("api/orders/router.py", ""),
    ],
    routers_speak_http_only: [
        ("api/items/router.py", "from sqlalchemy.orm import Session"),
        ("api/items/router.py", "from .repository import select"),
        ("api/items/router.py", "from uow import current_session"),
    ],
    services_know_no_http: [
        ("api/items/service.py", "import starlette.requests"),
        ("api/items/service.py", "from fastapi import Query"),
    ],
    repositories_hold_every_query: [
        ("api/items/service.py", "from sqlalchemy import select"),
        ("api/items/service.py", "import sqlalchemy as s\ns.sql.text('')"),
        ("api/items/models.py", "from sqlalchemy import update"),
    ],
    no_session_passes_through_depends: [
        ("api/app.py", "def f(s=Depends(get_session)): ..."),
        ("api/app.py", "def f(s: AsyncSession = Depends(db)): ..."),
        ("api/app.py", "def f(*, s: Session = Depends(db)): ..."),
        ("api/app.py", "S = Annotated[AsyncSession, Depends(db)]"),
    ],
    only_the_settings_read_the_environment: [
        ("api/cli.py", "import os\nx = os.environ.get('X')"),
        ("api/cli.py", "from os import getenv"),
    ],
    nothing_is_made_at_import: [
        ("api/app.py", "engine = create_async_engine('sqlite://')"),
        ("api/app.py", "if True:\n    database = uow.Database('sqlite://')"),
        ("uow/database.py", "settings = ServiceSettings()"),
    ],
    files_are_short: [("tests/test_x.py", "\n" * (FILE_LINES + 1))],
    functions_are_short: [("benchmarks/__main__.py", long("run", FUNCTION_LINES + 1))],
    a_middleware_call_fits_on_a_screen: [("uow/middleware.py", long("__call__", CALL_LINES + 1))],
    every_exception_to_a_check_says_why: [
        ("uow/_unit.py", "x = 1  # noqa"),
        ("uow/_unit.py", "x = 1  # noqa: E501, RUF100"),
        ("api/cli.py", "x = 1  # type: ignore[arg-type]"),
        ("api/cli.py", "x = 1  # pyright: ignore[reportAny]"),
        ("examples/quickstart.py", "x = 1  # pragma: no cover"),
        ("tests/test_x.py", "x = 1  # this stands before the mark  # noqa: E501"),
    ],
}

# Close to the offences above, and allowed.
GOOD_TREE = {f"api/items/{name}.py": "" for name in sorted(FEATURE_FILES | {"__init__"})} | {
    "uow/__init__.py": "from . import errors",
    "uow/fastapi.py": "from fastapi import FastAPI",
    "uow/retry.py": "from ._context import holder",
    "uow/testing/_probe.py": "from ._faults import Faults",
    "uow/_context.py": "holder = ContextVar('unit')",
    "uow/middleware.py": long("__call__", CALL_LINES) + long("settle", FUNCTION_LINES),
    "uow/_unit.py": 'def f():\n    """' + "\n" * FUNCTION_LINES + '    """\n',
    "uow/_options.py": "x = 1  # type: ignore[a]  # noqa: E501 - one table\n" * FILE_LINES,
    "api/app.py": "def f(items: Annotated[Items, Depends(items)]):\n    create_engine('x')",
    "api/settings.py": "import os\nclass S(BaseSettings):\n    a: int = Field(os.environ['A'])",
    "api/migrations/env.py": "from sqlalchemy import text",
    "api/items/router.py": "from .service import place, update\nplace.delete()",
    "api/items/models.py": "from sqlalchemy import func\nfrom sqlalchemy.orm import mapped_column",
    "api/items/repository.py": "from sqlalchemy import select",
    "api/items/service.py": "from sqlalchemy.exc import IntegrityError\nfrom uow import on_commit",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("name", RULES)
def test_the_source_keeps_the_rule(name: str) -> None:
    assert [*sources(ROOT, "uow")], "nothing was looked at"
    assert [*RULES[name](ROOT)] == []


@pytest.mark.parametrize(
    ("check", "name", "text"),
    [
        pytest.param(check, *offence, id=f"{check.__name__}-{number}")
        for check, offences in OFFENCES.items()
        for number, offence in enumerate(offences)
    ],
)
def test_the_rule_finds_an_offence(tmp_path: Path, check: Rule, name: str, text: str) -> None:
    (found,) = check(write(tmp_path, GOOD_TREE | {name: text}))
    assert found.startswith((f"{name}:", f"{Path(name).parent.as_posix()}:"))


@pytest.mark.parametrize("name", RULES)
def test_the_rule_allows_what_is_close_to_an_offence(tmp_path: Path, name: str) -> None:
    assert [*RULES[name](write(tmp_path, GOOD_TREE))] == []


def test_every_rule_is_seen_to_fail() -> None:
    assert {check.__name__ for check, offences in OFFENCES.items() if offences} == set(RULES)
