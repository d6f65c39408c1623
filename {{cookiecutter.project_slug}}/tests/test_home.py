"""The app's own first page: one session, one counter and one cached value. Yours begins here."""

import json
from typing import Any


def test_it_counts_this_visitor_and_all_and_keeps_what_was_computed(serve: Any, get: Any) -> None:
    url = serve("--workers", "2", APP_ENV="production").url
    status, body, cookie = get(url, "/")
    assert status == 200
    first, again, stranger = json.loads(body), json.loads(get(url, "/", cookie)[1]), json.loads(get(url, "/")[1])
    assert [one["your_visits"] for one in (first, again, stranger)] == [1, 2, 1]
    assert [one["all_visits"] - first["all_visits"] for one in (first, again, stranger)] == [0, 1, 2]
    assert len({one["open_since"] for one in (first, again, stranger)}) == 1
