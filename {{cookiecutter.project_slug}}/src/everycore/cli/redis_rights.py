"""Tries each feature once on Redis, on unused names, to find what it refuses.

The server may be a read-only replica or full, and the user may lack commands, keys or channels; starting the app would
not show that. Trying needs only the rights that serving needs, which ACL DRYRUN would not.
"""

import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError

from everycore.state import expiring_names, leader, rate_limit, schedule
from everycore.state.cache import store
from everycore.state.client.script import RELEASE, Script
from everycore.state.counters import Counters
from everycore.state.hosts import HostRegistry
from everycore.state.prefix import key_prefix_of, prefixed
from everycore.state.rate_limit import RateLimiter, Rule
from everycore.state.sessions import scripts
from everycore.state.sessions.store import SessionStore

SUBSCRIBE_TIMEOUT = 5.0  # seconds

# ARGV: commands. Returns those that this user may not use on KEYS[1]. Needs Redis 7.0.
REFUSED = """
local refused = {}
for _, name in ipairs(ARGV) do
    if not redis.acl_check_cmd(name, KEYS[1], KEYS[1], KEYS[1]) then table.insert(refused, name) end
end
return refused
"""


@dataclass(frozen=True)
class Refusal:
    """What Redis refused. If `needed`, the app cannot serve without it; otherwise `text` says what does not work."""

    text: str
    needed: bool


@dataclass(frozen=True)
class Feature:
    """A feature of the state layer.

    Attributes:
        name: As messages show it.
        uses: Its keys or channels, or the command it needs.
        lost: What happens without it; None if the app needs it.
        rehearse: Uses the feature once, under the given name.
        scripts: The Lua scripts it runs.
    """

    name: str
    uses: str
    lost: str | None
    rehearse: Callable[[Redis, str], Awaitable[Any]]
    scripts: tuple[str, ...] = ()


async def rehearse(redis: Redis) -> list[Refusal]:
    """Return what Redis refuses; features with the same reason share one refusal.

    Commands use the client's pool, because on the shared connection one feature's failure could affect another.
    """
    if not isinstance(redis, RedisCluster):
        client: Any = Redis(connection_pool=redis.connection_pool)
        client.key_prefix = key_prefix_of(redis)
        redis = client
    whys = [(feature, await _refused(redis, feature)) for feature in FEATURES]
    refusals = []
    for why in dict.fromkeys(why for _, why in whys if why):
        met = [feature for feature, other in whys if other == why]
        needed = any(feature.lost is None for feature in met)
        what = ", ".join(f"{feature.name} ({_used(redis, feature)})" for feature in met)
        lost = "" if needed else f" Without it: {'; '.join(str(feature.lost) for feature in met)}."
        refusals.append(Refusal(f"Redis refuses commands of {what}: {why}.{lost}", needed))
    return refusals


async def _refused(redis: Redis, feature: Feature) -> str | None:
    name = f"check-{secrets.token_hex(8)}"
    try:
        await feature.rehearse(redis, name)
    except RedisError as error:
        text = re.sub(r" script: .*", "", str(error)).rstrip(".") or type(error).__name__
        if "script" in str(error) and (names := await _commands_refused(redis, feature)):
            return f"{text}, which are {names}"
        return text
    return None


async def _commands_refused(redis: Redis, feature: Feature) -> str:
    """Return the forbidden commands of a feature's scripts: Redis' error does not name them. "" if it cannot tell."""
    commands = dict.fromkeys(re.findall(r"redis\.call\('(\w+)'", "".join(feature.scripts)))
    key = f"{_used(redis, feature).split()[1].rstrip('*')}check"
    try:
        return ", ".join(name.decode() for name in await Script(redis, REFUSED)(key, *commands))
    except RedisError:
        return ""


def _used(redis: Redis, feature: Feature) -> str:
    """Return the feature's keys or channels, with the app's prefix."""
    kind, _, pattern = feature.uses.partition(" ")
    return f"{kind} {prefixed(redis, pattern) if pattern.endswith('*') else pattern}"


async def _sessions(redis: Redis, name: str) -> None:
    store = SessionStore(redis, (name,))
    session = await store.load(None)
    session.user_id, session[name] = name, 1
    try:
        cookie = store.sign(str(await store.save(session)))
        session = await store.load(cookie)
        await session.update(name, lambda value: value + 1)
        session["other"] = 1
        await store.save(session)
        session.regenerate()
        await store.save(session)
        await store.load(cookie)
        await store.sessions_of(name)
    finally:
        session.clear()
        await store.save(session)
        await store.end_all(name)


async def _counters(redis: Redis, name: str) -> None:
    counters = Counters(redis)
    try:
        await counters.increment(name)
        await counters.get(name)
    finally:
        await counters.reset(name)


async def _cache(redis: Redis, name: str) -> None:
    """Use the store, which raises errors that `Cache` handles by computing."""
    cache = store.RedisCacheStore(redis, "cache:", ())
    _, generations = await cache.load(name, (name,))
    await cache.ensure_generations(generations)
    await cache.lock(name, name, 1.0)
    await cache.store(name, name, "{}", 1.0)
    await cache.forget(name)
    await redis.delete(prefixed(redis, f"cache:tag:{name}"))


async def _tracking(redis: Redis, name: str) -> None:
    if not isinstance(redis, RedisCluster):  # a cluster has no near cache
        send: Any = redis.execute_command
        await send("CLIENT TRACKING", "ON", "BCAST", "NOLOOP", "PREFIX", prefixed(redis, "cache:"))
        await send("CLIENT TRACKING", "OFF")


async def _limits(redis: Redis, name: str) -> None:
    await RateLimiter(redis).take(Rule(name, 1, per=1.0, fail_open=False), name)


async def _leader(redis: Redis, name: str) -> None:
    lease = prefixed(redis, f"leader:{{{name}}}")
    fence = f"{lease}:fence"
    await Script(redis, leader.ACQUIRE, keys=2)(lease, fence, name, 1000)
    await Script(redis, leader.EXTEND)(lease, name, 1000)
    await Script(redis, RELEASE)(lease, name)
    await Script(redis, schedule.BEGIN)(f"{lease}:last", 1, 1)
    await redis.time()
    await redis.delete(fence, f"{lease}:last")


async def _broadcast(redis: Redis, name: str) -> None:
    channel = prefixed(redis, f"broadcast:{name}")
    await redis.publish(channel, "null")
    await redis.initialize()  # a RedisCluster must know its nodes
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        await pubsub.get_message(timeout=SUBSCRIBE_TIMEOUT)


async def _hosts(redis: Redis, name: str) -> None:
    await HostRegistry(redis, ttl=1.0).announce(name, "")
    await redis.zrem(prefixed(redis, "host:names"), name)


SESSIONS = (scripts.SAVE, scripts.CREATE, scripts.CHECK, scripts.SWAP, scripts.MOVE, scripts.END)
LEADERS = (leader.ACQUIRE, leader.EXTEND, RELEASE, schedule.BEGIN)

FEATURES = (
    Feature(
        "sessions",
        "keys session:*",
        None,
        _sessions,
        (*SESSIONS, expiring_names.ADD, expiring_names.LIST),
    ),
    Feature("counters", "keys counter:*", "counters fail", _counters),
    Feature("the cache", "keys cache:*", "each worker computes for itself", _cache, (store.LOAD, store.STORE, RELEASE)),
    Feature("the near cache", "CLIENT TRACKING", "each cache hit asks Redis", _tracking),
    Feature("limits", "keys limit:*", "routes with a rate limit fail", _limits, (rate_limit.CLOCK, rate_limit.TAKE)),
    Feature("the leader", "keys leader:*", "no job of a leader runs", _leader, LEADERS),
    Feature("broadcast", "channels broadcast:*", "no message is sent or received", _broadcast),
    Feature(
        "the list of hosts", "keys host:*", "/cluster and /metrics know this host alone", _hosts, (expiring_names.ADD,)
    ),
)
