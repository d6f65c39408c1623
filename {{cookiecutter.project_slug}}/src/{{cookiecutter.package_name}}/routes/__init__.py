"""All pages of the app. Add one: write a file like home.py, import it here, and add its ROUTES."""

from . import home

ROUTES = [*home.ROUTES]
