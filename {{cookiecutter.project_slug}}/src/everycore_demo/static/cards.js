// One card for each worker, sorted by host and slot.

import { age, copy, createElement, element, number, plural, setText } from "./dom.js";

const ENDED_MS = 1500; // how long the card of an ended worker stays
export const SILENT_S = 1; // a worker writes a heartbeat ten times a second
const SAMPLE_MS = 500;
const SAMPLES = 40; // 20 seconds of requests per second

const hosts = new Map(); // name: { root, parts, cards }

export function show(status) {
  const names = Object.keys(status.hosts);
  element("hosts").classList.toggle("several", names.length > 1);
  for (const [name, host] of hosts) {
    if (names.includes(name)) continue;
    host.root.remove();
    hosts.delete(name);
  }
  for (const name of names) {
    if (!hosts.has(name)) hosts.set(name, hostNamed(name));
    update(hosts.get(name), status.hosts[name]);
  }
}

export function showAlone(worker) {
  const text = `This server is one process (pid ${worker.pid}) without a primary. Its counter in memory is correct until it`
    + " restarts. The commands dev and serve start several workers.";
  element("hosts").replaceChildren(createElement("p", "panel", text));
  hosts.clear();
}

function hostNamed(name) {
  const { root, parts } = copy("host-template");
  setText(parts.name, name);
  if (!hosts.size) element("hosts").replaceChildren();
  element("hosts").append(root);
  return { root, parts, list: root.querySelector(".slots"), cards: new Map() };
}

function update(host, board) {
  const ready = board.workers.filter((worker) => worker.state === "ready").length;
  setText(host.parts.summary, [
    `${ready} of ${plural(board.wanted, "worker")} ready`,
    `generation ${board.generation}`,
    `${plural(board.requests, "request")} handled`,
    `${plural(board.deaths, "worker")} ended`,
    `up ${age(board.age_s)}`,
    ...reloading(board),
  ].join(" · "));
  const pids = new Set(board.workers.map((worker) => worker.pid));
  for (const [pid, card] of host.cards) if (!pids.has(pid)) removeCard(host, pid, card);
  board.workers.forEach((worker) => {
    if (!host.cards.has(worker.pid)) host.cards.set(worker.pid, addCard(host, worker));
    fill(host.cards.get(worker.pid), worker);
  });
}

function reloading(board) {
  if (board.draining) return ["stopping"];
  if (board.reload === "loading") return ["reload: loading the new code"];
  if (board.reload === "starting") return ["reload: starting the new workers"];
  return ["refused", "restart needed"].includes(board.reload) ? [`reload refused: ${board.reload_reason}`] : [];
}

function addCard(host, worker) {
  const { root, parts } = copy("card-template");
  root.dataset.pid = worker.pid;
  setText(parts.name, `Worker ${worker.slot}`);
  setText(parts.process, `pid ${worker.pid} · generation ${worker.generation}`);
  slotOf(host, worker.slot).prepend(root); // a draining worker is below its replacement
  return { root, parts, line: root.querySelector("polyline"), samples: [], at: 0, requests: 0 };
}

function slotOf(host, slot) {
  const slots = [...host.list.children];
  const found = slots.find((other) => Number(other.dataset.slot) === slot);
  if (found) return found;
  const added = createElement("li", "slot");
  added.dataset.slot = slot;
  host.list.insertBefore(added, slots.find((other) => Number(other.dataset.slot) > slot) ?? null);
  return added;
}

function removeCard(host, pid, card) {
  host.cards.delete(pid);
  card.root.dataset.state = "gone";
  setText(card.parts.state, "ended");
  setTimeout(() => {
    const slot = card.root.parentElement;
    card.root.remove();
    if (!slot.childElementCount) slot.remove();
  }, ENDED_MS);
}

function fill(card, worker) {
  const silent = worker.heartbeat_age_s > SILENT_S && worker.state !== "starting";
  card.root.dataset.state = silent ? "silent" : worker.state;
  setText(card.parts.state, silent ? "no heartbeat" : worker.state);
  setText(card.parts.requests, number(worker.requests));
  setText(card.parts.connections, worker.connections);
  setText(card.parts.flight, worker.in_flight);
  setText(card.parts.lag, `${worker.lag_ms < 10 ? worker.lag_ms.toFixed(1) : number(Math.round(worker.lag_ms))} ms`);
  setText(card.parts.memory, `${(worker.rss_bytes / 2 ** 20).toFixed(0)} MiB`);
  setText(card.parts.age, age(worker.age_s));
  sample(card, worker.requests);
}

function sample(card, requests) {
  const now = performance.now();
  if (now - card.at < SAMPLE_MS) return;
  const rate = card.at ? Math.max(0, ((requests - card.requests) * 1000) / (now - card.at)) : 0;
  Object.assign(card, { at: now, requests, samples: [...card.samples, rate].slice(-SAMPLES) });
  setText(card.parts.rate, number(Math.round(rate)));
  const top = Math.max(20, ...card.samples);
  const first = SAMPLES - card.samples.length;
  const points = card.samples.map((value, index) => `${((first + index) * 100) / (SAMPLES - 1)},${19 - (18 * value) / top}`);
  card.line.setAttribute("points", points.join(" "));
}
