"""The engine: a primary that runs any ASGI app on every core, and the state that its workers share.

You need not read it, and `make update` replaces it whole. Its public names are those of `everycore.server`,
`everycore.state`, `everycore.web`, `everycore.cli` and `everycore.testing`.
"""
