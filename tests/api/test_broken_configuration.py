"""Many kinds of broken configuration: each stops the start, with one message and exit code 2.

Each message names the place, the key and what to do. The kinds are in broken_configurations.toml; what is
wrong with the database or the address is in test_broken_start.py.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import api.commands.serve
from api.cli import app
from tests.api.service import run_api
from tests.support.server import ROOT


@dataclass(frozen=True)
class Case:
    """A configuration, and the parts of the message that it has to be answered with."""

    name: str
    says: list[str]
    file: str = ""
    encoding: str = "utf-8"
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    beside: Mapping[str, str] = field(default_factory=dict)

    def lay_out(self) -> dict[str, str]:
        """Write its files into the current folder; the environment that goes with them."""
        texts = {"a.toml": self.file, **self.beside}
        texts |= {f"secrets/{name}": text for name, text in self.secrets.items()}
        for name, text in texts.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(f"{text}\n".encode(self.encoding))
        return {**self.env, **({"UOW_SECRETS_DIR": "secrets"} if self.secrets else {})}

    def assert_said(self, message: str) -> None:
        """One line, with all of its parts in their order, and nothing that is secret."""
        (line,) = message.splitlines()
        at = 0
        for part in self.says:
            assert part in line[at:], line
            at = line.index(part, at) + len(part)
        assert "secret " not in line.replace("secret file ", "")
        assert ":secret" not in line
        assert "'secret'" not in line


KINDS = ROOT / "tests" / "api" / "broken_configurations.toml"
CASES = [Case(**each) for each in tomllib.loads(KINDS.read_text(encoding="utf-8"))["case"]]
# Each of these in a process of its own: the same code, with all that is around it.
AS_PROCESSES = [case for case in CASES if case.name in {"an unknown key", "a key in clear", "a secret twice"}]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("it has started")

    monkeypatch.setattr(api.commands.serve, "bound", started)


def test_there_are_many_kinds() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 70
    assert len(AS_PROCESSES) == 3


@pytest.mark.usefixtures("never_started")
@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_broken_configuration_stops_the_start(case: Case, command: str) -> None:
    if case.options and command == "check":
        command = "serve"
    before = case.lay_out()
    files = sorted(Path().rglob("*"))
    ended = CliRunner().invoke(app, [command, "--config", "a.toml", *case.options], env=before)
    assert (ended.exit_code, ended.stdout) == (2, ""), ended.output
    case.assert_said(ended.stderr)
    assert sorted(Path().rglob("*")) == files  # nothing was tried


@pytest.mark.parametrize("case", AS_PROCESSES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_process_says_the_same(case: Case, tmp_path: Path) -> None:
    ended = run_api("serve", "--config", "a.toml", *case.options, env=case.lay_out(), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    case.assert_said(ended.stderr)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("missing.toml", "No such file or directory"), (".", "Is a directory"), ("a.toml/x", "Not a directory")],
)
def test_a_file_that_cannot_be_read_is_named(path: str, reason: str) -> None:
    Path("a.toml").touch()
    ended = CliRunner().invoke(app, ["check", "--config", path])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == f"{path}: cannot be read: {reason}\n"


def test_a_number_that_is_too_long_to_be_read_is_a_message() -> None:
    Path("a.toml").write_text(f"[server]\nport = {'9' * 5000}", encoding="utf-8")
    ended = CliRunner().invoke(app, ["check", "--config", "a.toml"])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("a.toml: is not TOML: ")


def test_several_mistakes_are_a_line_each() -> None:
    Path("a.toml").write_text("[server]\nprot = 1\nport = -1\n\n[logging]\nformat = 'xml'", encoding="utf-8")
    ended = CliRunner().invoke(app, ["check", "--config", "a.toml"])
    assert ended.exit_code == 2
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == [
        "a.toml, line 3",
        "a.toml, line 2",
        "a.toml, line 6",
    ]


def test_an_empty_file_is_in_order() -> None:
    """All of the above would be worth little if everything were refused."""
    Path("a.toml").touch()
    ended = CliRunner().invoke(app, ["check", "--config", "a.toml"])
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "FAILED" not in ended.stdout


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    Path("a.toml").write_text('[database]\nurl = "postgresql://u:secret@h/x"', encoding="utf-8")
    ended = CliRunner().invoke(app, ["check", "--config", "a.toml"])
    assert (ended.exit_code, ended.stdout) == (2, "")
    message = "a.toml, line 2: [database] url: postgresql needs the package asyncpg: pip install asyncpg\n"
    assert ended.stderr == message
