"""The settings: where they come from, and the one message of a start that cannot be."""

from __future__ import annotations

import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.origin import keys_at
from api.settings import ConfigurationError, Settings, load_settings
from tests.api.service import run_api
from tests.support.server import ROOT

# Lists of tables are in the file as examples: what is set as [] could not have tables below it.
SECTIONS = {
    section: [key for key in keys_at(Settings, (section,)) if not keys_at(Settings, (section, key))]
    for section in Settings.model_fields
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here starts in an empty folder, without settings in the environment."""
    monkeypatch.chdir(tmp_path)
    assert not [name for name in os.environ if name.upper().startswith("UOW_")]


def config(text: str) -> Path:
    path = Path("a.toml")
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_there_are_defaults() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert settings.database.url == "sqlite:///inventory.db"
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)


def test_the_file_of_the_project_names_every_setting_with_its_default() -> None:
    path = ROOT / "config.toml"
    assert load_settings(path) == Settings()
    assert {name: list(keys) for name, keys in tomllib.loads(path.read_text()).items()} == SECTIONS


def test_every_setting_of_the_file_has_a_comment_above_it() -> None:
    lines = (ROOT / "config.toml").read_text().splitlines()
    bare = [line for before, line in pairwise(lines) if line[:1].isalpha() and not before.startswith("#")]
    assert bare == []


def test_the_rule_of_the_file_is_one_once_it_is_no_comment() -> None:
    """Whoever takes the marks away gets a rule, and whatever is set there exists."""
    lines = (ROOT / "config.toml").read_text().splitlines()
    marked = lines[lines.index("# [[unit_of_work.rules]]") : lines.index("[idempotency]")]
    path = config("\n".join(line.removeprefix("# ") for line in marked if re.match(r"# (\[|\w+ = )", line)))
    (rule,) = load_settings(path).unit_of_work.rules
    assert {"match", *rule.options()} == set(keys_at(Settings, ("unit_of_work", "rules")))


def test_the_environment_wins_over_the_file_and_an_option_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    path = config('[database]\nurl = "sqlite:///file.db"\npool_size = 3\n[server]\nport = 1\n')
    monkeypatch.setenv("UOW_DATABASE__URL", "postgresql://postgres@localhost/inventory")
    monkeypatch.setenv("uow_server__port", "2")
    settings = load_settings(path, {"server": {"port": 3}})
    assert settings.database.url == "postgresql://postgres@localhost/inventory"
    assert (settings.database.pool_size, settings.server.port) == (3, 3)
    assert load_settings(path).server.port == 2


def test_config_toml_is_read_where_it_is() -> None:
    Path("config.toml").write_text("[server]\nport = 4\n", encoding="utf-8")
    assert load_settings().server.port == 4
    assert load_settings(config("[server]\nport = 5\n")).server.port == 5


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "[server]\nprot = 1",
            "a.toml, line 2: [server] prot: unknown key; did you mean port?",
            id="unknown key",
        ),
        pytest.param(
            "[server]\nport = 1\n[databse]\nurl = ''",
            "a.toml, line 3: [databse]: unknown section; did you mean database?",
            id="unknown section",
        ),
        pytest.param(
            "port = 1",
            "a.toml, line 1: [port]: unknown section;"
            " known are service, server, database, unit_of_work, idempotency, outbox, security, logging",
            id="a key outside of a section",
        ),
        pytest.param("server = 1", "a.toml, line 1: [server]: is a section, not a value", id="no section"),
        pytest.param(
            '[server]\n\n# The port.\nport = "many"',
            "a.toml, line 4: [server] port: Input should be a valid integer,"
            " unable to parse string as an integer (it is 'many')",
            id="wrong type",
        ),
        pytest.param(
            "[database]\npool_size = true",
            "a.toml, line 2: [database] pool_size: true and false are no values of this setting (it is True)",
            id="a switch",
        ),
        pytest.param(
            "[service]\ntitle = 5",
            "a.toml, line 2: [service] title: Input should be a valid string (it is 5)",
            id="a number for a text",
        ),
        pytest.param(
            "[server]\nport = 65536",
            "a.toml, line 2: [server] port: Input should be less than or equal to 65535 (it is 65536)",
            id="out of bounds",
        ),
        pytest.param(
            "[unit_of_work]\nsettle_timeout = inf",
            "a.toml, line 2: [unit_of_work] settle_timeout: Input should be a finite number (it is inf)",
            id="for ever",
        ),
        pytest.param(
            '[logging]\nlevel = "loud"',
            "a.toml, line 2: [logging] level: Input should be"
            " 'debug', 'info', 'warning' or 'error' (it is 'loud')",
            id="no such choice",
        ),
        pytest.param(
            '[database]\nurl = "inventory.db"',
            "a.toml, line 2: [database] url: not a database URL such as sqlite:///inventory.db",
            id="no URL",
        ),
        pytest.param(
            '[database]\nurl = "mysql://user:secret@localhost/x"',
            "a.toml, line 2: [database] url: mysql is not one of postgresql, postgresql+asyncpg,"
            " postgresql+psycopg, sqlite, sqlite+aiosqlite",
            id="no such engine",
        ),
        pytest.param(
            "[server\nport = 1",
            "a.toml: is not TOML: Expected ']'",
            id="not TOML",
        ),
        pytest.param(
            "[server]\nport = 1\nport = 2",
            "a.toml: is not TOML: Cannot overwrite a value",
            id="twice",
        ),
    ],
)
def test_a_wrong_file_is_one_message_that_names_the_key_and_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(config(text))
    said = str(caught.value)
    # How Python goes on about what is not TOML differs from one version to the next.
    assert (said[: len(message)] if "is not TOML" in message else said) == message
    assert len(said.splitlines()) == 1


def test_each_wrong_key_has_a_line_of_its_own() -> None:
    path = config("[server]\nprot = 1\nport = -1\n\n[logging]\nformat = 'xml'")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path)
    places = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert sorted(places) == ["a.toml, line 2", "a.toml, line 3", "a.toml, line 6"]


@pytest.mark.parametrize(
    ("path", "reason"), [("missing.toml", "No such file or directory"), (".", "Is a directory")]
)
def test_a_file_that_was_named_has_to_be_there(path: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(Path(path))
    assert str(caught.value) == f"{path}: cannot be read: {reason}"


def test_a_file_in_another_encoding_is_refused() -> None:
    Path("a.toml").write_bytes(b"[service]\ntitle = '\xe9'")
    with pytest.raises(
        ConfigurationError, match=r"^a\.toml, line 2: is not UTF-8: save it in this encoding$"
    ):
        load_settings(Path("a.toml"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "UOW_SERVER__PROT",
            "1",
            "environment variable UOW_SERVER__PROT: unknown setting; did you mean UOW_SERVER__PORT?",
        ),
        ("UOW_SERVER", '{"port": 1}', "environment variable UOW_SERVER: unknown setting"),
        (
            "UOW_SERVER__PORT",
            "many",
            "environment variable UOW_SERVER__PORT: [server] port: Input should be a valid integer",
        ),
        (
            "UOW_SERVER__PORT",
            "",
            "environment variable UOW_SERVER__PORT: [server] port: Input should be a valid integer",
        ),
        (
            "UOW_DATABASE__URL",
            "user:secret@localhost",
            "environment variable UOW_DATABASE__URL: [database] url: not a database URL",
        ),
    ],
)
def test_a_wrong_variable_is_one_message_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    path = config("[server]\nport = 1\n")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1
    assert "secret" not in str(caught.value)


def test_a_wrong_option_is_one_message_that_names_it() -> None:
    with pytest.raises(ConfigurationError, match=r"^option --port: \[server\] port: .* \(it is 70000\)$"):
        load_settings(None, {"server": {"port": 70000}})


def test_a_password_is_shown_nowhere() -> None:
    settings = load_settings(
        config('[database]\nurl = "postgresql://user:secret@localhost/inventory?password=secret"')
    )
    assert settings.database.shown == "postgresql://user:***@localhost/inventory"
    assert "secret" not in repr(settings)


NO_FILE = "missing.toml: cannot be read: No such file or directory"
NO_URL = "environment variable UOW_DATABASE__URL: [database] url: not a database URL such as sqlite:///inventory.db"


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["serve", "--config", "missing.toml"], {}, NO_FILE),
        (["migrate"], {"UOW_DATABASE__URL": "nonsense"}, NO_URL),
    ],
    ids=["serve", "migrate"],
)
def test_a_start_that_cannot_be_is_its_message_and_exit_status_2(
    tmp_path: Path, arguments: list[str], env: dict[str, str], message: str
) -> None:
    ended = CliRunner().invoke(app, arguments, env=env)
    assert (ended.exit_code, ended.stdout, ended.stderr) == (2, "", f"{message}\n")
    assert list(tmp_path.iterdir()) == []


def test_the_message_is_all_that_a_process_writes(tmp_path: Path) -> None:
    config("[server]\nprot = 1")
    ended = run_api("--config", "a.toml", cwd=tmp_path)
    message = "a.toml, line 2: [server] prot: unknown key; did you mean port?\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", message)
