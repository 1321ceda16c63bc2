"""Nothing is wrong with how the service is wired, before its first request and from then on."""

from __future__ import annotations

from api.app import create_app
from api.settings import Settings
from uow.wiring import check_wiring


def test_the_service_is_wired_as_it_should_be() -> None:
    app = create_app(Settings())
    assert list(check_wiring(app)) == []
    app.middleware_stack = app.build_middleware_stack()
    assert list(check_wiring(app)) == []
