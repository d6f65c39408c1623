"""An entry's form and its times; hostile forms first."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everycore.state.cache.entry import Entry, pack, unpack


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"1",
        b'"four"',
        b'{"n": 1}',
        b"\n1",
        b"[]\n1",
        b'"four"\n1',
        b'["t",0,{},null]\n1',
        b"\xff\n1",
        b"[[[[\n",
        "x\n",
    ],
)
def test_foreign_text_is_no_entry(raw: Any) -> None:
    assert unpack(raw, 1000, 0.0) is None


def test_missing_or_persistent_key_is_no_entry() -> None:
    packed = pack("1", "t", 0.0, {}, 0.0)
    assert unpack(None, -2, 0.0) is None
    assert unpack(packed, -1, 0.0) is None
    assert unpack(packed, 1, 0.0) is not None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, st.dictionaries(st.text(), st.text()), st.integers(0, 10**9))
def test_packed_entry_unpacks_equal(value: Any, generations: dict[str, str], life: int) -> None:
    packed = pack(json.dumps(value), "token", 0.25, generations, 10.0)
    for raw in (packed, packed.encode()):
        entry = unpack(raw, life, 100.0)
        assert entry is not None
        assert entry.value() == value
        assert (entry.token, entry.delta, entry.generations) == ("token", 0.25, generations)
        assert entry.expires_at == 100.0 + life / 1000
        assert entry.fresh_until == entry.expires_at - 10.0


def test_each_reader_gets_its_own_copy() -> None:
    entry = Entry('{"a": [1]}', "t", 0.0, {}, 1.0, 1.0)
    entry.value()["a"].append(2)
    assert entry.value() == {"a": [1]}


def test_refresh_is_likelier_near_the_end() -> None:
    entry = Entry("1", "t", delta=1.0, generations={}, fresh_until=100.0, expires_at=200.0)
    assert all(entry.should_refresh(100.0 + late) for late in range(100))
    due = Counter(left for left in (1, 3, 50) for _ in range(4000) if entry.should_refresh(100.0 - left))
    # Of an exponential distribution: exp(-1) and exp(-3) of 4000, and exp(-50) of any number.
    assert 1200 < due[1] < 1750
    assert 100 < due[3] < 320
    assert due[50] == 0
