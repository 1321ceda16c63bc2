"""Each optional module can be deleted: what is left imports without it, and serves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import OPTIONAL_MODULES, ROOT

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
