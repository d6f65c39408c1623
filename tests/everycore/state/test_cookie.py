"""Cookies of every kind that a client may send."""

from string import ascii_letters, digits
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from everycore.state.sessions.cookie import MAX_VERIFIED, CookieSigner, SessionCookie, hash_id

KEY = "a-key-of-more-than-thirty-two-characters"
SIGNATURES = CookieSigner([KEY])
SIGNED = SIGNATURES.sign("an-id")

cookie = SessionCookie(secure=False)


def found(*headers: bytes) -> str | None:
    return cookie.find([(b"host", b"x"), *((b"cookie", header) for header in headers)])


def test_cookie_is_found_among_others() -> None:
    assert found(b"session=abc") == "abc"
    assert found(b"a=1; session=abc;b=2") == "abc"
    assert found(b"a=1", b"b=2;  session = abc ") == "abc"
    assert not found(b"xsession=1; sessionx=2; session; =session; SESSION=3")
    assert not found()


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_cookie_of_any_bytes_is_no_error(headers: list[bytes]) -> None:
    assert SIGNATURES.verify(found(*headers, *(b"session=" + header for header in headers))) is None


@given(st.text(max_size=400) | st.builds(lambda end: SIGNED[:end], st.integers(0, len(SIGNED) - 1)))
def test_foreign_signature_is_not_verified(value: str) -> None:
    assert SIGNATURES.verify(value) is None


@given(st.integers(0, len(SIGNED) - 1), st.characters(min_codepoint=32, max_codepoint=126))
def test_changed_character_is_not_verified(position: int, character: str) -> None:
    changed = SIGNED[:position] + character + SIGNED[position + 1 :]
    assert SIGNATURES.verify(changed) == (("an-id", hash_id("an-id")) if changed == SIGNED else None)


def test_other_spellings_of_a_signature_are_not_verified() -> None:
    id, signature = SIGNED.split(".")
    assert set(signature) & set("-_")
    spellings = [
        signature.replace("-", "+").replace("_", "/"),
        signature + "=",
        signature[:5] + "!!!!" + signature[5:],
        *(signature[:-1] + last for last in ascii_letters + digits + "-_" if last != signature[-1]),
    ]
    assert [spelling for spelling in spellings if SIGNATURES.verify(f"{id}.{spelling}")] == []


def test_forged_cookies_displace_no_verified_one() -> None:
    signer = CookieSigner([KEY])
    for _ in range(3):
        assert signer.verify(SIGNED) == ("an-id", hash_id("an-id"))
    for number in range(2 * MAX_VERIFIED):
        signer.verify(f"forged.{number}")
    assert signer.verify(SIGNED)
    assert (signer._verified.cache_info().hits, signer._verified.cache_info().currsize) == (3, 1)
    for number in range(2 * MAX_VERIFIED):
        signer.verify(signer.sign(str(number)))
    assert signer._verified.cache_info().currsize == MAX_VERIFIED


def test_first_key_signs_and_all_verify() -> None:
    rotated = CookieSigner(["a-new-key-of-more-than-thirty-two-characters", KEY])
    assert rotated.verify(SIGNED)
    assert SIGNATURES.verify(rotated.sign("an-id")) is None


def attributes(**options: Any) -> str:
    return SessionCookie(**options).set("x", 60)[1].decode()


def test_cookie_name_gets_the_prefix_that_its_attributes_allow() -> None:
    assert attributes() == "__Host-session=x; Max-Age=60; Path=/; HttpOnly; SameSite=Lax; Secure"
    assert attributes(name="shop", secure=False) == "shop=x; Max-Age=60; Path=/; HttpOnly; SameSite=Lax"
    assert attributes(path="/shop").startswith("__Secure-session=x; Max-Age=60; Path=/shop; ")
    assert attributes(domain="shop.com", samesite="strict").startswith("__Secure-")
    assert attributes(domain="shop.com").endswith("SameSite=Lax; Domain=shop.com; Secure")
    # A browser refuses one that is not secure (form_post callbacks of an identity provider need it).
    assert attributes(samesite="none", secure=False).endswith("SameSite=None; Secure")
