"""State that all workers share in Redis: sessions, counters, cache, rate limits, leader, broadcast and streams.

It works under any ASGI server. Does not import: everycore.server, everycore.web.
"""

from everycore.state.broadcast import MISSED, Broadcast
from everycore.state.cache.cache import Cache
from everycore.state.cache.decorator import cached
from everycore.state.client.connect import UNAVAILABLE_ERRORS, connect
from everycore.state.counters import DAY, HOUR, MINUTE, Counters
from everycore.state.leader import run_as_leader
from everycore.state.lifespan import lifespan, sessions
from everycore.state.presence import Presence
from everycore.state.rate_limit import RateLimiter, RateLimitResult, Rule
from everycore.state.rate_limit_middleware import RateLimitMiddleware
from everycore.state.schedule import daily, every
from everycore.state.sessions.cookie import SessionCookie
from everycore.state.sessions.middleware import SessionMiddleware
from everycore.state.sessions.session import Session, SessionEndedError, session
from everycore.state.sessions.store import Lifetimes, SessionStore, SessionTooLargeError
from everycore.state.settings import StateSettings
from everycore.state.stream import Stream

__all__ = [
    "DAY",
    "HOUR",
    "MINUTE",
    "MISSED",
    "UNAVAILABLE_ERRORS",
    "Broadcast",
    "Cache",
    "Counters",
    "Lifetimes",
    "Presence",
    "RateLimitMiddleware",
    "RateLimitResult",
    "RateLimiter",
    "Rule",
    "Session",
    "SessionCookie",
    "SessionEndedError",
    "SessionMiddleware",
    "SessionStore",
    "SessionTooLargeError",
    "StateSettings",
    "Stream",
    "cached",
    "connect",
    "daily",
    "every",
    "lifespan",
    "run_as_leader",
    "session",
    "sessions",
]
