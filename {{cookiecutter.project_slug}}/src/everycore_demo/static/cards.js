// One card for each worker, by host and slot; they come and go as the workers do.

import { age, copy, element, make, number, plural, say } from "./dom.js";

const GONE_MS = 1500; // so long the card of a dead worker is seen to leave
export const SILENT_S = 1; // a worker beats ten times a second
const SAMPLE_MS = 500;
const SAMPLES = 40; // 20 seconds of requests per second

const hosts = new Map(); // name: { root, parts, cards }

export function show(picture) {
  const names = Object.keys(picture.hosts);
  element("hosts").classList.toggle("several", names.length > 1);
  for (const [name, host] of hosts) {
    if (names.includes(name)) continue;
    host.root.remove();
    hosts.delete(name);
  }
  for (const name of names) {
    if (!hosts.has(name)) hosts.set(name, hostNamed(name));
    update(hosts.get(name), picture.hosts[name]);
  }
}

export function showAlone(worker) {
  const text = `There is no cluster here: one process, pid ${worker.pid}, answers everything. Its memory is the only one, so it`
    + " counts right until it is restarted. The commands dev and serve start a cluster.";
  element("hosts").replaceChildren(make("p", "panel", text));
  hosts.clear();
}

function hostNamed(name) {
  const { root, parts } = copy("host-template");
  say(parts.name, name);
  if (!hosts.size) element("hosts").replaceChildren();
  element("hosts").append(root);
  return { root, parts, list: root.querySelector(".slots"), cards: new Map() };
}

function update(host, board) {
  const ready = board.workers.filter((worker) => worker.state === "ready").length;
  say(host.parts.summary, [
    `${ready} of ${plural(board.wanted, "worker")} ready`,
    `generation ${board.generation}`,
    `${plural(board.requests, "request")} answered`,
    `${plural(board.deaths, "worker")} gone so far`,
    `up ${age(board.age_s)}`,
    ...reloading(board),
  ].join(" · "));
  const pids = new Set(board.workers.map((worker) => worker.pid));
  for (const [pid, card] of host.cards) if (!pids.has(pid)) leave(host, pid, card);
  board.workers.forEach((worker) => {
    if (!host.cards.has(worker.pid)) host.cards.set(worker.pid, enter(host, worker));
    fill(host.cards.get(worker.pid), worker);
  });
}

function reloading(board) {
  if (board.draining) return ["stopping"];
  if (board.reload === "checking") return ["reload: checking the new code"];
  if (board.reload === "starting") return ["reload: starting the new workers"];
  return board.reload === "refused" ? [`reload refused: ${board.reload_reason}`] : [];
}

function enter(host, worker) {
  const { root, parts } = copy("card-template");
  root.dataset.pid = worker.pid;
  say(parts.name, `Worker ${worker.slot}`);
  say(parts.who, `pid ${worker.pid} · generation ${worker.generation}`);
  slotOf(host, worker.slot).prepend(root); // an old one that drains is below its successor
  return { root, parts, line: root.querySelector("polyline"), samples: [], at: 0, requests: 0 };
}

function slotOf(host, slot) {
  const slots = [...host.list.children];
  const found = slots.find((other) => Number(other.dataset.slot) === slot);
  if (found) return found;
  const made = make("li", "slot");
  made.dataset.slot = slot;
  host.list.insertBefore(made, slots.find((other) => Number(other.dataset.slot) > slot) ?? null);
  return made;
}

function leave(host, pid, card) {
  host.cards.delete(pid);
  card.root.dataset.state = "gone";
  say(card.parts.state, "gone");
  setTimeout(() => {
    const slot = card.root.parentElement;
    card.root.remove();
    if (!slot.childElementCount) slot.remove();
  }, GONE_MS);
}

function fill(card, worker) {
  const silent = worker.beat_age_s > SILENT_S && worker.state !== "starting";
  card.root.dataset.state = silent ? "silent" : worker.state;
  say(card.parts.state, silent ? `silent for ${age(worker.beat_age_s)}` : worker.state);
  say(card.parts.requests, number(worker.requests));
  say(card.parts.connections, worker.connections);
  say(card.parts.flight, worker.in_flight);
  say(card.parts.lag, `${worker.lag_ms < 10 ? worker.lag_ms.toFixed(1) : number(Math.round(worker.lag_ms))} ms`);
  say(card.parts.memory, `${(worker.rss_bytes / 2 ** 20).toFixed(0)} MiB`);
  say(card.parts.age, age(worker.age_s));
  sample(card, worker.requests);
}

function sample(card, requests) {
  const now = performance.now();
  if (now - card.at < SAMPLE_MS) return;
  const rate = card.at ? Math.max(0, ((requests - card.requests) * 1000) / (now - card.at)) : 0;
  Object.assign(card, { at: now, requests, samples: [...card.samples, rate].slice(-SAMPLES) });
  say(card.parts.rate, number(Math.round(rate)));
  const top = Math.max(20, ...card.samples);
  const first = SAMPLES - card.samples.length;
  const points = card.samples.map((value, index) => `${((first + index) * 100) / (SAMPLES - 1)},${19 - (18 * value) / top}`);
  card.line.setAttribute("points", points.join(" "));
}
