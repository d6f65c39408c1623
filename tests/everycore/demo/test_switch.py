"""When the demo is on."""

import pytest
from everycore.web.settings import SettingsError, read

from everycore_demo.switch import on

PRODUCTION = read({"SECRET_KEY": "a-key-of-more-than-thirty-two-characters"})
DEVELOPMENT = read({"APP_ENV": "development"})


def test_the_demo_is_off_in_production_and_on_in_development() -> None:
    assert not on(PRODUCTION, {})
    assert on(DEVELOPMENT, {})
    assert on(PRODUCTION, {"DEMO": "on"})
    assert not on(DEVELOPMENT, {"DEMO": "off"})


def test_a_bad_value_is_refused() -> None:
    with pytest.raises(SettingsError, match="DEMO is 'yes'; it must be on or off"):
        on(PRODUCTION, {"DEMO": "yes"})
