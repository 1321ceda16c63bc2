"""What the OpenAPI document promises, held against a running service by schemathesis.

It draws requests that the document allows, and others that it forbids, follows its links from answer to
answer, and compares what comes back with the document. `make fuzz` draws many more, new ones in each run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.guarded import GuardedService
from tests.api.service import BROKEN, Service
from tests.support.processes import python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT

# How many requests `make fuzz` draws for each operation in each phase.
MANY = os.environ.get("FUZZ")
FEW = ["--max-examples", "20", "--generation-deterministic"]


@pytest.mark.parametrize("service_leg", ["sqlite", "pg18"], indirect=True)
def test_the_service_is_what_its_document_says(own_service: Service) -> None:
    own_service.start()
    assert_as_documented(own_service)
    assert own_service.backend.query(BROKEN) == []


def test_so_it_is_with_keys(tmp_path: Path) -> None:
    """401 and 403 are documented, and nothing that needs a key is done without one."""
    service = GuardedService(tmp_path)
    service.start()
    try:
        assert_as_documented(service, "--header", f"Authorization: Bearer {service.keys.both.key}")
    finally:
        service.close()


def assert_as_documented(service: Service, *options: str) -> None:
    run = schemathesis(service, *options)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "14 selected / 14 total" in run.stdout
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f" ✅  {phase} (in" in run.stdout, run.stdout
    assert [line for line in service.lines() if line["level"] == "error"] == []
    assert service.alive


def schemathesis(service: Service, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "--config-file",
            str(Path(__file__).with_name("schemathesis.toml")),
            "run",
            f"{service.base_url}/openapi.json",
            "--no-color",
            *(FEW if MANY is None else ["--max-examples", MANY]),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=8 * LIMIT if MANY is None else None,
        check=False,
        cwd=ROOT,
        # A warning is an error, as in all tests.
        env=python_environment({"PYTHONWARNINGS": "error", "PYTHONUTF8": "1"}),
    )
