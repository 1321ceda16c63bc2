"""Each optional module can be deleted: what is left imports without it, and serves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source import Source
from tests.test_architecture import OPTIONAL_MODULES, ROOT

HELPERS = {"idempotency": "keys", "outbox": "outboxes"}
"""What their tests share, in tests/uow."""

WALK = """
import importlib, pkgutil, sys, uow
for module in pkgutil.walk_packages(uow.__path__, "uow."):
    importlib.import_module(module.name)
assert uow.__file__.startswith(sys.argv[1]), uow.__file__
import examples.quickstart
from starlette.testclient import TestClient
with TestClient(examples.quickstart.app) as client:
    assert client.post("/items/?name=mug").is_success
    assert [item["name"] for item in client.get("/items/").json()] == ["mug"]
"""


@pytest.mark.parametrize("module", sorted(OPTIONAL_MODULES))
def test_what_is_left_works_without_it(tmp_path: Path, module: str) -> None:
    tree = tmp_path / "tree"
    for package in ("uow", "examples"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = tree.joinpath(*module.split("."))
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.with_suffix(".py").unlink()

    command = [sys.executable, "-W", "ignore", "-c", WALK, str(tree)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["idempotency", "outbox"])
def test_the_tests_that_are_left_do_without_it(name: str) -> None:
    """Those that need it say so in their names, so that they can be deleted with it."""
    its_own = (f"uow.{name}", f"tests.uow.{HELPERS[name]}")
    need_it = {
        path.name
        for path in (ROOT / "tests" / "uow").glob("*.py")
        if any(module.startswith(its_own) for _, module in Source(ROOT, path).imports())
    }
    assert len(need_it) > 5
    assert {each for each in need_it if name not in each} <= {f"{HELPERS[name]}.py"}
