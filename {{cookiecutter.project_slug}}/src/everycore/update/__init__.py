"""`make update`: replace the engine by a newer release, and list what else the template changed.

Stdlib only. It works when no dependency of the app is installed.
"""
