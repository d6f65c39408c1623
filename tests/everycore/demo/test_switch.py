"""The setting DEMO."""

import pytest

from everycore.web import AppSettings, SettingsError
from everycore_demo.switch import is_on

PRODUCTION = AppSettings.from_environ({"SECRET_KEY": "a-key-of-more-than-thirty-two-characters"})
DEVELOPMENT = AppSettings.from_environ({"APP_ENV": "development"})


def test_is_on_by_default_in_development_only() -> None:
    assert not is_on(PRODUCTION, {})
    assert is_on(DEVELOPMENT, {})
    assert is_on(PRODUCTION, {"DEMO": "on"})
    assert not is_on(DEVELOPMENT, {"DEMO": "off"})


def test_is_on_with_a_bad_value_is_an_error() -> None:
    with pytest.raises(SettingsError, match="DEMO is 'yes'; it must be on or off"):
        is_on(PRODUCTION, {"DEMO": "yes"})
