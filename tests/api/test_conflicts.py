"""Settings that are each right, and cannot be together: one message names the key to change."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from api.settings import ConfigurationError, load_settings

POSTGRESQL = 'url = "postgresql://u@localhost/x"\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no certificate", encoding="utf-8")


def refusal(text: str) -> str:
    Path("a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(Path("a.toml"))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[server]\nworkers = 2\nreload = true",
            "a.toml, line 3: [server] reload: is for one process, and [server] workers is 2",
        ),
        (
            '[server]\nworkers = 2\n[database]\nurl = "sqlite://"',
            "a.toml, line 2: [server] workers: each process would have a database in memory of its own",
        ),
        (
            '[database]\nurl = "sqlite:///file:x?mode=memory&uri=true"\n[server]\nreload = true',
            "a.toml, line 4: [server] reload: each process would have a database in memory of its own",
        ),
        (
            "[server]\ntls_key = 'file'",
            "a.toml, line 2: [server] tls_key: needs [server] tls_certificate, the file of its certificate",
        ),
        (
            "[server]\ntls_certificate = 'file'",
            "a.toml, line 2: [server] tls_certificate: needs [server] tls_key, the file of its private key",
        ),
        (
            "[server]\ntls_certificate = 'file'\ntls_key = 'missing'",
            "a.toml, line 3: [server] tls_key: missing cannot be read: No such file or directory",
        ),
        (
            "[server]\ntls_certificate = 'file'\ntls_key = 'file'",
            "a.toml, line 2: [server] tls_certificate: cannot be used with [server] tls_key: ",
        ),
        (
            "[server]\nunix_socket = '/missing/x.sock'",
            "a.toml, line 2: [server] unix_socket: there is no folder /missing",
        ),
        (
            "[server]\ntrusted_proxies = '127.0.0.1, proxy'",
            "a.toml, line 2: [server] trusted_proxies: proxy is no address, no network and not *",
        ),
        ("[server]\nreload = 1", "a.toml, line 2: [server] reload: is true or false (it is 1)"),
        (
            "[database]\npassword_file = 'file'",
            "a.toml, line 2: [database] password_file: is for PostgreSQL, and [database] url is SQLite",
        ),
        (
            "[database]\npooler = true",
            "a.toml, line 2: [database] pooler: is for PostgreSQL, and [database] url is SQLite",
        ),
        (
            f"[database]\n{POSTGRESQL}password_file = 'file'\npassword_command = 'cat file'",
            "a.toml, line 4: [database] password_command: cannot be set beside [database] password_file",
        ),
        (
            "[database]\nurl = 'postgresql://u:secret@localhost/x'\npassword_command = 'cat file'",
            "a.toml, line 3: [database] password_command: cannot be set beside a password in [database] url",
        ),
        (
            f"[database]\n{POSTGRESQL}password_command = 'missing-program x'",
            "a.toml, line 3: [database] password_command: there is no program missing-program",
        ),
        (
            f'[database]\n{POSTGRESQL}password_command = "cat \'x"',
            "a.toml, line 3: [database] password_command: is no command: No closing quotation",
        ),
    ],
)
def test_what_cannot_be_together_is_one_message_that_names_the_key_and_its_place(
    text: str, message: str
) -> None:
    said = refusal(text)
    assert said.startswith(message)
    assert "secret" not in said


def test_the_place_of_a_conflict_may_be_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UOW_SERVER__RELOAD", "true")
    said = refusal("[server]\nworkers = 2")
    assert said.startswith("environment variable UOW_SERVER__RELOAD: [server] reload: ")


def test_a_certificate_and_its_key_are_taken_and_another_key_is_not() -> None:
    for name in ("a", "b"):
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x"
        subprocess.run(
            [*command.split(), "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            check=True,
            capture_output=True,
        )
    Path("a.toml").write_text("[server]\ntls_certificate = 'a.pem'\ntls_key = 'a.key'", encoding="utf-8")
    assert load_settings(Path("a.toml")).server.tls_key == "a.key"
    assert "tls_certificate: cannot be used with" in refusal(
        "[server]\ntls_certificate = 'a.pem'\ntls_key = 'b.key'"
    )
