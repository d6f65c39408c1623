"""What all workers share, kept in Redis: sessions, counters, cache, limits, a leader, a broadcast.

This package knows no route and no process: it can be lifted into another Starlette or FastAPI app as it is.
Every store takes a `redis.asyncio.Redis` that the app's lifespan made, one per worker.
"""
