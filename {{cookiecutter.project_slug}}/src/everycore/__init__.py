"""The engine: a primary that runs any ASGI app on every core, and the state that its workers share.

You need not read this package, and `make update` replaces the whole folder. `everycore.server`, `everycore.state`,
`everycore.web`, `everycore.cli` and `everycore.testing` export its public names.
"""
