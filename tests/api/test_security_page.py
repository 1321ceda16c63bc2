"""docs/security.md says of each attack which module holds it off and which test makes it: they exist."""

from __future__ import annotations

import ast
import re

from tests.support.server import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.partition("## What is checked where")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| attack")
]
ATTACKS = (
    "test_security_guard.py",
    "test_security_keys.py",
    "test_security_browsers.py",
    "test_security_secrets.py",
)


def found_in(name: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / "api" / name).read_text(encoding="utf-8"))
    functions = [each for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {each.name for each in functions if each.name.startswith("test_")}


def test_each_attack_names_a_test_that_is_there() -> None:
    assert len(ROWS) > 30
    for attack, _, _, shown_by in ROWS:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", shown_by)
        assert named, attack
        for file, test in named:
            assert test in found_in(file), attack


def test_each_attack_names_a_module_that_is_there() -> None:
    for attack, _, by, _ in ROWS:
        assert re.search(r"`\w+/[\w/]+\.py`|Starlette", by), attack
        for module in re.findall(r"`(\w+/[\w/]+\.py)`", by):
            assert (ROOT / module).is_file(), attack


def test_no_file_of_attacks_is_left_out() -> None:
    for file in ATTACKS:
        assert len({test for test in found_in(file) if test in PAGE}) >= 5, file
