"""Finds, signs, verifies and sets the session's cookie. Does not import: redis, starlette."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from itsdangerous import BadSignature, Signer
from itsdangerous.encoding import base64_decode, base64_encode

MAX_COOKIE_LENGTH = 256  # characters; a valid cookie has 76

MAX_VERIFIED = 2048  # verified cookies that a worker remembers; each takes 0.5 KiB and saves 20 us a request


class CookieSigner:
    """Signs and verifies session ids. The first of `secret_keys` signs and all verify, so a key can be rotated."""

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._signer = Signer(list(reversed(secret_keys)), salt="session", digest_method=hashlib.sha256)
        # A forged cookie raises and is not remembered, so a client cannot displace the cookies of others.
        self._verified = lru_cache(MAX_VERIFIED)(self._unsign)

    def sign(self, id: str) -> str:
        """Return the value of the cookie: the id and its signature."""
        return self._signer.sign(id).decode()

    def verify(self, cookie: str | None) -> tuple[str, str] | None:
        """Return the id in a cookie and its hash, or None if the signature is invalid."""
        if not cookie or len(cookie) > MAX_COOKIE_LENGTH or not cookie.isascii():
            return None
        try:
            return self._verified(cookie)
        except BadSignature:
            return None

    def _unsign(self, cookie: str) -> tuple[str, str]:
        id = self._signer.unsign(cookie).decode()
        signature = cookie[len(id) + 1 :].encode()
        # Base64 has many spellings of the same bytes. With all of them a client could fill the memory of verified ones.
        if base64_encode(base64_decode(signature)) != signature:
            raise BadSignature("The signature is not spelled as `sign` does.")
        return id, hash_id(id)


def hash_id(id: str) -> str:
    """Return the form of an id that Redis stores. A reader of the database cannot make a cookie from it."""
    return hashlib.sha256(id.encode()).hexdigest()


class SessionCookie:
    """Name and attributes of the session's cookie (RFC 6265bis).

    Args:
        name: Name without the `__Host-` or `__Secure-` prefix.
        secure: Send the cookie over https only, with a prefix that browsers enforce: `__Host-`, so that no other host
            can set it, or `__Secure-` if `path` or `domain` is given.
        path: Requests below this path carry the cookie.
        domain: Its subdomains receive the cookie too. By default only the host that set it does.
        samesite: "lax", "strict" or "none". With "none" the cookie is always secure.
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
        self.name, self.secure = prefix + name, secure
        self._name = self.name.encode()
        self._attributes = (
            f"; Path={path}; HttpOnly; SameSite={samesite.capitalize()}"
            + (f"; Domain={domain}" if domain else "")
            + ("; Secure" if secure else "")
        )

    def find(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the cookie's value in the headers of an ASGI scope, or None."""
        for header, cookies in headers:
            if header == b"cookie":  # HTTP/2 clients may split it into several (RFC 9113)
                for cookie in cookies.split(b";"):
                    name, _, value = cookie.partition(b"=")
                    if name.strip() == self._name:
                        return value.strip().decode("latin-1")
        return None

    def set(self, value: str, age: float) -> tuple[bytes, bytes]:
        """Return the header that sets the cookie for `age` seconds, or deletes it with 0."""
        return b"set-cookie", f"{self.name}={value}; Max-Age={int(age)}{self._attributes}".encode()
