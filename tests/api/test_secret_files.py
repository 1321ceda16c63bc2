"""Secret files: a folder with one setting in each file, as Docker, Kubernetes and systemd hand them over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.settings import load_settings
from tests.api.service import run_api, write_config

URL = "postgresql://app:hunter2@localhost/x"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the secret files, which is named already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UOW_SECRETS_DIR", str(tmp_path / "secrets"))
    made = tmp_path / "secrets"
    made.mkdir()
    return made


@pytest.mark.parametrize("name", ["database__url", "DATABASE__URL", "UOW_DATABASE__URL", "uow_database__url"])
def test_a_file_is_a_setting_without_the_end_of_its_line(folder: Path, name: str) -> None:
    (folder / name).write_text(f"{URL}\n", encoding="utf-8")
    assert load_settings().database.url == URL


def test_a_secret_wins_over_the_file_and_the_environment_and_an_option_over_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(Path("a.toml"), {"server": {"port": 1, "workers": 2}, "database": {"pool_size": 3}})
    for key in ("server__port", "server__workers"):
        (folder / key).write_text("5", encoding="utf-8")
    monkeypatch.setenv("UOW_SERVER__PORT", "6")
    settings = load_settings(path)
    assert (settings.server.port, settings.server.workers, settings.database.pool_size) == (6, 5, 3)
    assert load_settings(path, {"server": {"workers": 7}}).server.workers == 7


def test_a_list_is_json(folder: Path) -> None:
    rules = [{"match": "POST /orders/", "isolation": "serializable", "stream_timeout": "3s"}]
    (folder / "unit_of_work__rules").write_text(json.dumps(rules), encoding="utf-8")
    (rule,) = load_settings().unit_of_work.rules
    assert (rule.match, rule.isolation, rule.stream_timeout) == ("POST /orders/", "serializable", 3)


def test_the_credentials_of_systemd_are_found_unless_another_folder_is_named(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "server__port").write_text("7", encoding="utf-8")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert load_settings().server.port == 8000
    monkeypatch.delenv("UOW_SECRETS_DIR")
    assert load_settings().server.port == 7


def test_links_are_followed_and_files_of_others_left_alone(folder: Path) -> None:
    """Kubernetes links each file to a hidden folder, which it replaces as a whole."""
    (folder / "..data").mkdir()
    (folder / "..data" / "server__port").write_text("8", encoding="utf-8")
    (folder / "server__port").symlink_to("..data/server__port")
    (folder / "tls.key").write_text("of the proxy", encoding="utf-8")
    (folder / "server_port").write_text("of nobody", encoding="utf-8")
    assert load_settings().server.port == 8


def test_what_a_secret_file_has_is_shown_nowhere(folder: Path) -> None:
    (folder / "database__url").write_text(URL, encoding="utf-8")
    (folder / "service__title").write_text("hunter2", encoding="utf-8")
    for arguments in (["config"], ["config", "--json"]):
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 0
        assert "hunter2" not in ended.output
    found = json.loads(ended.stdout)
    place = f"secret file {folder / 'database__url'}"
    assert found["database"]["url"] == {"value": "postgresql://app:***@localhost/x", "from": place}
    assert found["service"]["title"]["value"] == "***"


@pytest.mark.parametrize("length", [1024 * 1024 + 1])
def test_a_secret_that_is_too_long_is_no_setting(folder: Path, length: int) -> None:
    (folder / "service__title").write_text("x" * length, encoding="utf-8")
    ended = CliRunner().invoke(app, ["check"])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert f"secret file {folder / 'service__title'}: is longer than 1048576 bytes" in ended.stderr


def test_check_warns_of_a_secret_that_others_may_read_and_of_one_that_is_not_used(folder: Path) -> None:
    secret = folder / "service__title"
    secret.write_text("x", encoding="utf-8")
    secret.chmod(0o644)
    env = {"UOW_SECRETS_DIR": str(folder)}
    said = run_api("check", env=env, cwd=folder.parent)
    assert said.returncode == 0
    assert f"{secret} has a secret that every user of this machine may read: chmod o= {secret}" in said.stdout
    assert "is not used" not in said.stdout
    secret.chmod(0o640)
    said = run_api("check", env=env | {"UOW_SERVICE__TITLE": "y"}, cwd=folder.parent)
    assert said.returncode == 0
    assert "may read" not in said.stdout
    place = "environment variable UOW_SERVICE__TITLE"
    assert f"{secret} is not used: {place}, has its setting as well: remove one of them" in said.stdout
