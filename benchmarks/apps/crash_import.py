"""A broken deploy: it raises when it is imported."""

import common

common.report_ready()  # so that attempts can be counted
raise RuntimeError("broken at import")
