"""A login: password hash, rate limits, new session id, "remember me", log out everywhere, a message for the next page.

dev --app examples.login:create_app
"""

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.templating import Jinja2Templates

from everycore import state, web
from everycore.state import RateLimitMiddleware, Rule, session

HERE = Path(__file__).parent
static = web.StaticFiles(HERE / "static")
templates = Jinja2Templates(HERE / "templates", context_processors=[static.urls])

BY_CLIENT = Rule("login-client", 20, per=600)  # attempts of one address, whatever the name
BY_NAME = Rule("login-name", 5, per=600)  # attempts for one name, whatever the address
REMEMBERED, FORGOTTEN = 30 * 86400, 8 * 3600  # seconds until a login ends, with "remember me" and without
MIN_PASSWORD = 12  # characters
NOBODY = f"{'0' * 32}$"  # no password has this hash
USERS = "examples:users"  # in Redis: the password hash of each name. In your app it is a table of the database
hashing = CapacityLimiter(2)  # passwords that each worker hashes at once


def hash_password(password: str, salt: bytes) -> str:
    """Return the salt and the hash. It takes 0.2 s and 16 MiB, so that guessing is slow (OWASP's parameters)."""
    return f"{salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=5).hex()}"


def is_password(password: str, stored: str) -> bool:
    salt = bytes.fromhex(stored.partition("$")[0])
    return hmac.compare_digest(hash_password(password, salt), stored)


def user_of(request: Request) -> Any:
    """Return the name of the user who is logged in, or None. Call it in every handler that needs the user."""
    visitor = session(request)
    if visitor.user_id is not None and visitor.get("until", 0) < time.time():
        visitor.clear()
    return visitor.user_id


async def show(request: Request) -> Response:
    user, message = user_of(request), session(request).pop("message", None)
    devices = len(await request.state.sessions.sessions_of(user)) if user else 0
    return templates.TemplateResponse(request, "login.html", {"user": user, "devices": devices, "message": message})


async def sign_up(request: Request) -> Response:
    name, password, _ = await credentials(request)
    if not name or len(password) < MIN_PASSWORD:
        return home(request, f"Choose a name, and a password of {MIN_PASSWORD} characters or more.")
    hashed = await to_thread.run_sync(hash_password, password, secrets.token_bytes(16), limiter=hashing)
    created = await request.state.redis.hsetnx(USERS, name, hashed)
    return home(request, "You have signed up. Please log in." if created else "This name is taken.")


async def log_in(request: Request) -> Response:
    name, password, remember = await credentials(request)
    if not (await request.state.limits.take(BY_NAME, name)).allowed:
        raise HTTPException(429, "Too many attempts for this name. Please wait ten minutes.")
    stored = await request.state.redis.hget(USERS, name)
    known = stored.decode() if stored else NOBODY  # an unknown name takes as long as a wrong password
    if not await to_thread.run_sync(is_password, password, known, limiter=hashing):
        return home(request, "The name or the password is wrong.")
    visitor = session(request)
    visitor.user_id = name  # and a new session id, so that a stolen old one is useless
    visitor["until"] = time.time() + (REMEMBERED if remember else FORGOTTEN)
    return home(request, "Welcome.")


async def log_out(request: Request) -> Response:
    visitor = session(request)
    if "everywhere" in await request.form() and visitor.user_id is not None:
        await request.state.sessions.end_all(visitor.user_id, keep=visitor)
    visitor.clear()
    return home(request, "You are logged out.")


async def credentials(request: Request) -> tuple[str, str, bool]:
    form = await request.form()
    return str(form.get("name", "")).strip().lower()[:80], str(form.get("password", ""))[:1000], "remember" in form


def home(request: Request, message: str) -> Response:
    session(request)["message"] = message
    return RedirectResponse(request.url_for("account").path, 303)


def create_app() -> Starlette:
    settings = web.AppSettings.for_app(__name__)
    limited = [Middleware(RateLimitMiddleware, rule=BY_CLIENT)]
    pages = [
        Route("/", show, name="account"),
        Route("/sign-up", sign_up, methods=["POST"], middleware=limited),
        Route("/log-in", log_in, methods=["POST"], middleware=limited),
        Route("/log-out", log_out, methods=["POST"]),
    ]
    return Starlette(
        debug=settings.development,
        routes=[Mount("/static", static, name="static"), Mount("/", routes=pages, middleware=[state.sessions()])],
        middleware=web.middleware(settings),
        exception_handlers=web.exception_handlers(),
        lifespan=state.lifespan(settings),
    )
