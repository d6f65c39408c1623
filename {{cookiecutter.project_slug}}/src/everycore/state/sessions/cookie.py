"""The session's cookie: how it is found among others, signed, verified and set. Knows no Redis and no request."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from itsdangerous import BadSignature, Signer

MAX_COOKIE_LENGTH = 256  # characters; ours have 76

MAX_VERIFIED = 2048  # cookies that a worker need not verify again; each costs it half a kilobyte, and spares 20 us


class CookieSigner:
    """Signs ids, and knows its own. secret_keys: the first signs, all verify, so a key can be rotated."""

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._signer = Signer(list(reversed(secret_keys)), salt="session", digest_method=hashlib.sha256)
        # A forged one raises, and so is not kept: nobody can push out those of others with it.
        self._verified = lru_cache(MAX_VERIFIED)(self._unsign)

    def sign(self, id: str) -> str:
        return self._signer.sign(id).decode()

    def verify(self, cookie: str | None) -> tuple[str, str] | None:
        """The id in a cookie and its `hashed` form, None if we have not signed it."""
        if not cookie or len(cookie) > MAX_COOKIE_LENGTH or not cookie.isascii():
            return None
        try:
            return self._verified(cookie)
        except BadSignature:
            return None

    def _unsign(self, cookie: str) -> tuple[str, str]:
        id = self._signer.unsign(cookie).decode()
        return id, hash_id(id)


def hash_id(id: str) -> str:
    """What Redis knows an id by: who reads the database cannot forge a cookie with what is there."""
    return hashlib.sha256(id.encode()).hexdigest()


class SessionCookie:
    """The cookie's name and attributes (RFC 6265bis).

    secure: over https only, and under a prefix that browsers heed: `__Host-`, so that no other host can set it, or
    `__Secure-` where a domain or a path of its own is asked for. A cookie with samesite "none" is always secure.
    domain: also sent to the hosts below it; by default to the host alone that set it.
    """

    def __init__(
        self,
        name: str = "session",
        secure: bool = True,
        path: str = "/",
        domain: str | None = None,
        samesite: str = "lax",
    ) -> None:
        secure = secure or samesite == "none"
        prefix = ("__Host-" if path == "/" and domain is None else "__Secure-") if secure else ""
        self.name = prefix + name
        self._name = self.name.encode()
        self._attributes = (
            f"; Path={path}; HttpOnly; SameSite={samesite.capitalize()}"
            + (f"; Domain={domain}" if domain else "")
            + ("; Secure" if secure else "")
        )

    def find(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Its value among the headers of an ASGI scope."""
        for header, cookies in headers:
            if header == b"cookie":  # there may be several: HTTP/2 lets clients split it (RFC 9113)
                for cookie in cookies.split(b";"):
                    name, _, value = cookie.partition(b"=")
                    if name.strip() == self._name:
                        return value.strip().decode("latin-1")
        return None

    def set(self, value: str, age: float) -> tuple[bytes, bytes]:
        """The header that sets it for `age` seconds, or with 0 takes it back."""
        return b"set-cookie", f"{self.name}={value}; Max-Age={int(age)}{self._attributes}".encode()
