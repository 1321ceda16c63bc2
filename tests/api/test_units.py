"""Times and sizes in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.settings import ConfigurationError, Settings, load_settings
from api.units import bytes_of, seconds_of, spelt_bytes, spelt_seconds
from tests.api.service import write_config

TIMES = [
    (0, "0s"),
    (0.001, "1ms"),
    (0.5, "500ms"),
    (1.5, "1.5s"),
    (3, "3s"),
    (60, "1m"),
    (90, "90s"),
    (5400, "90m"),
    (3600, "1h"),
]


@pytest.mark.parametrize(("seconds", "text"), TIMES)
def test_a_time_is_shown_as_it_can_be_written(seconds: float, text: str) -> None:
    assert spelt_seconds(seconds) == text
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1B"), (1000, "1000B"), (2**15, "32KiB"), (3 * 2**20, "3MiB")]
)
def test_a_size_is_shown_as_it_can_be_written(size: int, text: str) -> None:
    assert spelt_bytes(size) == text
    assert bytes_of(text) == size


def test_every_time_and_size_of_the_service_takes_numbers_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are of these types: a time that took numbers alone would be one too many."""
    monkeypatch.setenv("UOW_DATABASE__POOL_TIMEOUT", "7")
    monkeypatch.setenv("UOW_UNIT_OF_WORK__STREAM_TIMEOUT", "7 m")
    times = {
        (section, key)
        for section, info in Settings.model_fields.items()
        for key in type(info.default).model_fields
        if key.endswith(("_timeout", "_age", "_seconds")) or key in {"slow_unit", "long_transaction"}
    }
    assert len(times) == 9
    sections: dict[str, dict[str, object]] = {}
    for section, key in times:
        sections.setdefault(section, {})[key] = "3s"
    sections["server"]["max_body_size"] = "64KiB"
    settings = load_settings(write_config(tmp_path / "a.toml", sections))
    values = {key: getattr(getattr(settings, section), key) for section, key in times}
    assert values.pop("pool_timeout") == 7
    assert values.pop("stream_timeout") == 420
    assert set(values.values()) == {3}
    assert settings.server.max_body_size == 65536
    numbers = write_config(tmp_path / "b.toml", {"server": {"keep_alive_timeout": 4, "max_body_size": 5}})
    server = load_settings(numbers).server
    assert (server.keep_alive_timeout, server.max_body_size) == (4, 5)


@pytest.mark.parametrize(
    ("section", "key", "most", "days"),
    [
        ("logging", "long_transaction", "168h", 7),
        ("logging", "slow_unit", "168h", 7),
        ("server", "graceful_shutdown_timeout", "168h", 7),
        ("security", "hsts_max_age", "87600h", 3650),
    ],
)
def test_a_time_has_an_end(tmp_path: Path, section: str, key: str, most: str, days: int) -> None:
    """A timer that is asked for more than it can count ends its thread, and nothing is watched."""
    seconds = days * 24 * 3600
    for value in (most, seconds):
        settings = load_settings(write_config(tmp_path / "a.toml", {section: {key: value}}))
        assert getattr(getattr(settings, section), key) == seconds
    for above in (seconds + 1, f"{days * 24 + 1}h", "9" * 400):
        with pytest.raises(ConfigurationError, match=rf"line 2: \[{section}\] {key}: "):
            load_settings(write_config(tmp_path / "a.toml", {section: {key: above}}))


@pytest.mark.parametrize("text", ["soon", "", "-1s", "1 day", "1e3", "3s\n4s", "inf"])
def test_what_is_no_time_is_refused_with_examples(tmp_path: Path, text: str) -> None:
    path = write_config(tmp_path / "a.toml", {"database": {"pool_timeout": text}})
    with pytest.raises(ConfigurationError, match=r'line 2: .* pool_timeout: is a time: .* "500ms"'):
        load_settings(path)
