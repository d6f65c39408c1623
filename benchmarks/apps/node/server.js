// The same routes on Node's cluster module, Express, express-session and connect-redis.
'use strict';

const cluster = require('node:cluster');
const fs = require('node:fs');
const path = require('node:path');

const variant = process.env.BENCH_APP;
const COMPUTATION = 50; // milliseconds; what /cached saves
const CACHE_TTL = 30; // seconds

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const milliseconds = (request) => Number(request.query.ms ?? 0);

function reportReady() {
  const now = Number(process.hrtime.bigint()) / 1e9; // CLOCK_MONOTONIC, as Python's time.monotonic()
  fs.writeFileSync(path.join(process.env.BENCH_READY, String(process.pid)), String(now));
}

function primary() {
  for (let i = 0; i < Number(process.env.WEB_CONCURRENCY); i++) cluster.fork();
  cluster.on('exit', () => cluster.fork());
}

async function worker() {
  if (variant === 'crash_import') {
    reportReady();
    throw new Error('broken at import');
  }
  const express = require('express');
  const session = require('express-session');
  const { RedisStore } = require('connect-redis');
  const { createClient } = require('redis');
  const { WebSocketServer } = require('ws');

  const redis = createClient({ url: process.env.REDIS_URL });
  redis.on('error', () => {}); // it reconnects by itself; without a listener the process would end
  await redis.connect();
  if (variant === 'crash_lifespan') {
    reportReady();
    throw new Error('broken in the start');
  }

  const sessions = session({
    store: new RedisStore({ client: redis }),
    secret: 'for-the-benchmarks-only-and-nothing-else',
    name: 'session',
    resave: false,
    saveUninitialized: false,
    cookie: { maxAge: 14 * 86400 * 1000 },
  });

  const app = express();
  app.get('/plain', (request, response) => response.type('text').send('ok'));
  app.get('/pid', (request, response) => response.type('text').send(String(process.pid)));
  app.get('/slow', async (request, response) => {
    await sleep(milliseconds(request));
    response.type('text').send(String(process.pid));
  });
  app.get('/block', (request, response) => {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds(request));
    response.type('text').send(String(process.pid));
  });
  app.get('/counter', async (request, response) => response.json({ count: await redis.incr('counter:bench') }));
  app.get('/cached', async (request, response) => {
    const key = `cache:${request.query.key ?? 'bench'}`;
    let value = await redis.get(key);
    if (value === null) {
      await sleep(COMPUTATION);
      value = String(process.pid);
      await redis.set(key, value, { EX: CACHE_TTL });
    }
    response.json({ computed_by: Number(value) });
  });
  app.get('/session', sessions, (request, response) => {
    request.session.hits = (request.session.hits ?? 0) + 1;
    response.json({ hits: request.session.hits });
  });
  app.get('/session/key', sessions, async (request, response) => {
    const before = Object.keys(request.session).length;
    await sleep(milliseconds(request));
    request.session[request.query.name] = 1;
    response.json({ before });
  });
  app.get('/session/all', sessions, (request, response) => {
    const { cookie, ...values } = request.session;
    response.json(values);
  });
  app.get('/logout', sessions, (request, response) => {
    request.session.destroy(() => response.type('text').send('ended'));
  });

  const server = app.listen(Number(process.env.PORT), '127.0.0.1', reportReady);
  new WebSocketServer({ server, path: '/ws' }).on('connection', (socket) => {
    socket.on('message', (data) => socket.send(data.toString()));
  });
  if (variant === 'dies_young') setTimeout(() => process.exit(1), 200);
}

if (cluster.isPrimary) {
  primary();
} else {
  worker().catch((error) => {
    console.error(error);
    process.exit(1);
  });
}
