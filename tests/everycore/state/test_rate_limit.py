"""The script beside a model that keeps no bucket, and many takers at once, on a real Redis."""

import asyncio
from fractions import Fraction
from time import monotonic
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from everycore.state.client.connect import connect
from everycore.state.client.script import Script
from everycore.state.rate_limit import MAX_KEY_LENGTH, TAKE, RateLimiter, RateLimitResult, Rule

pytestmark = pytest.mark.anyio

NOWHERE = "unix:///nowhere/redis.sock"
HOUR = 3600
START = 1_800_000_000_000_000  # microseconds, as large as a clock's


class Clocked(RateLimiter):
    """RateLimiter whose script differs only in its clock: that is the test's, in microseconds."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.now = START
        script = Script(redis, "local now = tonumber(ARGV[4])" + TAKE)

        async def take(*args: Any) -> Any:
            return await script(*args, self.now)

        self._take = take  # type: ignore[assignment]


class VirtualScheduling:
    """GCRA's other form, in fractions: when would the next take come if all came evenly (I.371, figure A.1)."""

    def __init__(self, rule: Rule) -> None:
        self.interval = Fraction(rule.per_us, rule.limit)
        self.size = rule.size
        self.arrival = Fraction(0)

    def take(self, now: int, cost: int) -> RateLimitResult:
        following = max(self.arrival, Fraction(now)) + cost * self.interval
        early = following - now - self.size * self.interval
        if early <= 0:
            self.arrival = following
        ahead = max(Fraction(0), self.arrival - now)
        return RateLimitResult(
            allowed=early <= 0,
            limit=self.size,
            remaining=int((self.size * self.interval - ahead) / self.interval),
            retry_after_s=float(max(Fraction(0), early)) / 1e6,
            reset_after_s=float(ahead) / 1e6,
        )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": 'a"b'}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
        ({"limit": 0}, "1 or more"),
        ({"burst": 0}, "1 or more"),
        ({"per": 0}, "0.001 seconds or more"),
        ({"per": float("nan")}, "0.001 seconds or more"),
        ({"limit": 10**6, "per": 86400 * 365}, "too large to count exactly"),
    ],
)
def test_rule_out_of_range_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Rule(**{"name": "api", "limit": 10, "per": 60, **wrong})


@pytest.mark.parametrize("cost", [0, -1, 11])
async def test_cost_above_the_burst_is_refused(redis: Redis, cost: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 10"):
        await RateLimiter(redis).take(Rule("api", 10, per=60), "ann", cost)


async def test_outage_allows_open_rule_and_fails_closed_one() -> None:
    limits = RateLimiter(connect(NOWHERE, 0.5))
    result = await limits.take(Rule("api", 10, per=60), "ann")
    assert (result.allowed, result.enforced) == (True, False)
    with pytest.raises(ConnectionError):
        await limits.take(Rule("api", 10, per=60, fail_open=False), "ann")
    assert (limits.stats.refused, limits.stats.failed_open) == (0, 1)


# Hours, so that no key goes by Redis' own clock while the test's stands still.
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(1, 50),
    per=st.sampled_from([HOUR, 7 * HOUR, 86400.000001]),
    burst=st.one_of(st.none(), st.integers(1, 100)),
    takes=st.lists(
        st.tuples(st.one_of(st.integers(0, 10**9), st.integers(0, 10**11)), st.integers(1, 100)), max_size=25
    ),
)
async def test_takes_match_virtual_scheduling(
    redis: Redis, limit: int, per: float, burst: int | None, takes: list[tuple[int, int]]
) -> None:
    await redis.flushall()
    rule = Rule("api", limit, per, burst)
    limits, model = Clocked(redis), VirtualScheduling(rule)
    for pause_us, cost in takes:
        limits.now += pause_us
        cost = min(cost, rule.size)
        judged, expected = await limits.take(rule, "ann", cost), model.take(limits.now, cost)
        assert (judged.allowed, judged.limit, judged.remaining) == (
            expected.allowed,
            expected.limit,
            expected.remaining,
        )
        assert judged.retry_after_s == pytest.approx(expected.retry_after_s, abs=1e-9)
        assert judged.reset_after_s == pytest.approx(expected.reset_after_s, abs=1e-9)


async def test_take_at_retry_after_is_allowed_not_before(redis: Redis) -> None:
    limits, rule = Clocked(redis), Rule("api", 3, per=HOUR)
    assert [(await limits.take(rule, "ann")).remaining for _ in range(3)] == [2, 1, 0]
    refused = await limits.take(rule, "ann")
    assert (refused.allowed, refused.retry_after_s, refused.reset_after_s) == (False, HOUR / 3, HOUR)
    limits.now += HOUR * 10**6 // 3 - 1
    assert not (await limits.take(rule, "ann")).allowed
    limits.now += 1
    assert (await limits.take(rule, "ann")).allowed


async def test_clock_set_back_locks_no_client_out(redis: Redis) -> None:
    limits, rule = Clocked(redis), Rule("api", 3, per=HOUR)
    for _ in range(3):
        await limits.take(rule, "ann")
    limits.now -= 24 * HOUR * 10**6
    assert (await limits.take(rule, "ann")).retry_after_s == HOUR / 3
    limits.now += HOUR * 10**6 // 3
    assert (await limits.take(rule, "ann")).allowed


async def test_parallel_takes_allow_exactly_the_burst(redis: Redis, redis_url: str) -> None:
    other = connect(redis_url, 5.0)
    workers, rule = [RateLimiter(redis), RateLimiter(other)], Rule("api", 25, per=HOUR)
    results = await asyncio.gather(*(workers[n % 2].take(rule, "ann") for n in range(200)))
    await other.aclose()
    assert sum(result.allowed for result in results) == 25
    assert sorted(result.remaining for result in results if result.allowed) == list(range(25))
    assert sum(worker.stats.refused for worker in workers) == 175
    assert sum(worker.stats.failed_open for worker in workers) == 0


async def test_takes_on_redis_clock_never_exceed_the_rule(redis: Redis) -> None:
    limits, rule = RateLimiter(redis), Rule("api", 10, per=0.5)
    began, allowed = monotonic(), 0  # uvloop's own clock stands still between two turns
    while allowed < 30:
        result = await limits.take(rule, "ann")
        allowed += result.allowed
        assert allowed <= 10 + (monotonic() - began + 0.005) * 20  # two clocks, which may be slewed
        await asyncio.sleep(result.retry_after_s)


async def test_keys_and_rules_have_their_own_quotas(redis: Redis) -> None:
    limits, rule = RateLimiter(redis), Rule("api", 1, per=HOUR)
    assert (await limits.take(rule, "ann")).allowed
    assert not (await limits.take(rule, "ann")).allowed
    assert (await limits.take(rule, "bob")).allowed
    assert (await limits.take(Rule("login", 1, per=HOUR), "ann")).allowed


async def test_bucket_expires_and_its_key_is_bounded(redis: Redis) -> None:
    await RateLimiter(redis).take(Rule("api", 10, per=HOUR), "x" * 10_000)
    (key,) = await redis.keys()
    assert len(key) < 2 * MAX_KEY_LENGTH
    assert 300_000 < await redis.pttl(key) <= 360_001


async def test_refusal_writes_nothing(redis: Redis) -> None:
    limits, rule = RateLimiter(redis), Rule("api", 1, per=HOUR)
    await limits.take(rule, "ann")
    (key,) = await redis.keys()
    before = await redis.get(key)
    assert not (await limits.take(rule, "ann")).allowed
    assert await redis.get(key) == before
