"""In which tests the coverage of `uow` is measured: those that have to reach all of it.

These are the tests of `tests/uow`, and what is marked with `measured`. The tracer doubles the processor time
of whatever runs in this process; and most other tests drive servers in processes of their own, of which it
sees nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import pytest

import uow

_MEASURED = Path(__file__).resolve().parents[1] / "uow"


class Controller(Protocol):
    """What pytest-cov has for its own marker `no_cover`."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


def is_measured(item: pytest.Item) -> bool:
    """Whether what this test reaches counts."""
    return item.path.is_relative_to(_MEASURED) or item.get_closest_marker("measured") is not None


class Measuring:
    """Resumes the paused measurement where a test comes that counts, and pauses it where one does not.

    Fixtures count as their test does.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._measures = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if (measures := is_measured(item)) != self._measures:
            (self._controller.resume if measures else self._controller.pause)()
            self._measures = measures
        return (yield)


def measure(config: pytest.Config) -> None:
    """Have only those tests measured, if this run measures at all. To be called when it has begun to."""
    controller: Controller | None = getattr(config.pluginmanager.get_plugin("_cov"), "cov_controller", None)
    if controller is None:
        return
    # What runs at import is measured here, once and for all, and not when the tests are collected.
    for module in pkgutil.walk_packages(uow.__path__, "uow."):
        importlib.import_module(module.name)
    controller.pause()
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        config.pluginmanager.register(Measuring(controller))  # in the others no test runs
