"""A Starlette app on every core: see README.md for the commands and the layout."""
