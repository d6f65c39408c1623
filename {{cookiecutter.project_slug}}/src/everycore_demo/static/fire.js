// Sends requests, and shows the counts in the workers' memories beside the count in Redis.

import { createElement, element, number, plural, setText } from "./dom.js";

const REQUESTS = 200;
const CONCURRENCY = 5; // a browser has six connections to a host, and the stream needs one
const STEPS = 12; // requests of the visitor whose session is followed
const READS = 30; // requests for one cached value
const COMPUTE_MS = 300;

// Callers add `close` to the path: each request then has a new connection and may reach any worker. By default the
// cookie is not sent, because parallel requests would overwrite each other's counter in one session.
export async function ask(path, credentials = "omit") {
  const response = await fetch(path, { cache: "no-store", credentials });
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  const body = await response.json();
  return { body, slot: body.worker.slot };
}

const list = (words) => new Intl.ListFormat("en-GB").format(words); // without a comma before "and"

export async function fire() {
  element("fire").disabled = true;
  setText(element("fired"), "");
  try {
    const { answers, failed } = await hits();
    const results = [answers.length ? counted(answers, failed) : "No request succeeded."];
    results.push(await session(), await cache());
    element("fired").classList.add("visually-hidden"); // for screen readers only: the panels show the same
    setText(element("fired"), results.join(" "));
  } catch (error) {
    element("fired").classList.remove("visually-hidden");
    setText(element("fired"), `Stopped: ${error.message}. Send the requests again.`);
  } finally {
    element("fire").disabled = false;
  }
}

async function repeat(count, send) {
  let sent = 0;
  const client = async () => {
    while (sent < count) {
      sent += 1;
      await send();
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, client));
}

async function hits() {
  const answers = [];
  let failed = 0;
  await repeat(REQUESTS, async () => {
    try {
      answers.push((await ask("demo/hit?close")).body);
    } catch {
      failed += 1;
    }
    element("progress").value = answers.length + failed;
    setText(element("answered"), `${answers.length} of ${REQUESTS}${failed ? `, ${failed} failed` : ""}`);
    if (answers.length % 10 === 0 && answers.length) bars(answers);
  });
  return { answers, failed };
}

// Draws the count in each worker's memory as a part of their sum, and the count in Redis.
function bars(answers) {
  const workers = new Map();
  for (const { worker, memory } of answers) {
    const seen = workers.get(worker.pid) ?? { worker, memory: 0 };
    workers.set(worker.pid, { worker, memory: Math.max(seen.memory, memory.hits) });
  }
  const total = Math.max(...answers.map(({ redis }) => redis.hits));
  const counts = [...workers.values()].sort((a, b) => a.worker.slot - b.worker.slot || a.worker.pid - b.worker.pid);
  const hostnames = new Set(counts.map(({ worker }) => worker.host));
  const all = counts.reduce((sum, { memory }) => sum + memory, 0);
  const rows = counts.map(({ worker, memory }) =>
    bar(`Worker ${worker.slot}${hostnames.size > 1 ? `, ${worker.host}` : ""}`, memory, all));
  element("bars").replaceChildren(...rows);
  element("truth").replaceChildren(bar("Redis", total, total));
  return { counts: counts.map(({ memory }) => memory), total };
}

function bar(name, value, total) {
  const row = createElement("li", "bar");
  const track = createElement("span", "track");
  const full = track.appendChild(createElement("span", "full"));
  full.style.setProperty("width", `${Math.min(100, (100 * value) / total)}%`); // the CSP forbids style="..."
  row.append(createElement("span", "name", name), track, createElement("span", "figure", number(value)));
  return row;
}

function counted(answers, failed) {
  const { counts, total } = bars(answers);
  setText(element("gotcha"), counts.length > 1
    ? `The workers count ${list(counts.map(number))}: each counts only its own requests.`
    : "One worker handled all requests.");
  const distinct = new Set(answers.map(({ redis }) => redis.hits)).size;
  const first = Math.min(...answers.map(({ redis }) => redis.hits));
  const others = total - first + 1 - distinct;
  const exact = distinct === answers.length;
  const more = others > 0 ? ` ${plural(others, "count")} in between went to other clients${failed ? " or to failed requests" : ""}.` : "";
  setText(element("cure"), exact
    ? `Exactly ${distinct} of ${REQUESTS}: counts ${number(first)} to ${number(total)}, each once.${more}`
    : `NOT exact: ${distinct} different counts in ${answers.length} responses.`);
  return `${plural(counts.length, "worker")} counted ${counts.join(", ")} in memory; Redis counted ${distinct} of ${REQUESTS}.`;
}

// Sends the requests of one visitor, one after the other. The count continues with any worker.
async function session() {
  const steps = [];
  element("session").replaceChildren();
  for (let step = 0; step < STEPS; step += 1) {
    const { worker, session: own } = (await ask("demo/hit?close", "same-origin")).body;
    steps.push({ slot: worker.slot, hits: own.hits });
    const chip = createElement("li", "step");
    chip.append(createElement("span", "name", `worker ${worker.slot}`), createElement("span", "figure", number(own.hits)));
    element("session").append(chip);
  }
  const exact = steps.every(({ hits: seen }, step) => seen === steps[0].hits + step);
  const text = `${exact ? "No step is missing" : "NOT exact"}, over ${plural(new Set(steps.map(({ slot }) => slot)).size, "worker")}.`;
  setText(element("session-result"), text);
  return `Your session: ${text}`;
}

async function cache() {
  const key = crypto.randomUUID?.() ?? String(Math.random()); // browsers have randomUUID on secure pages only
  const answers = [];
  await repeat(READS, async () => answers.push(await ask(`demo/cached?key=${key}&ms=${COMPUTE_MS}&close`)));
  const by = new Set(answers.map(({ body }) => body.computed_by.pid));
  const slots = [...new Set(answers.map(({ slot }) => slot))].sort((a, b) => a - b);
  const computer = answers[0].body.computed_by;
  const text = by.size === 1
    ? `${READS} requests reached ${plural(slots.length, "worker")} (${slots.join(", ")}). Worker ${computer.slot} computed it once, in ${COMPUTE_MS} ms.`
    : `NOT once: ${by.size} workers computed it.`;
  setText(element("cache"), text);
  return `The slow value: ${text}`;
}
