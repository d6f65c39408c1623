// Fires requests, and shows who counted what: the gotcha and its cure.

import { element, make, number, plural, say } from "./dom.js";

const REQUESTS = 200;
const AT_ONCE = 5; // a browser opens six connections to a host, and the stream has one of them
const STEPS = 12; // of the visitor whose session is followed
const ASKS = 30; // for one cached value
const COMPUTE_MS = 300;

// Each over a connection of its own (`close`), or they would meet no more workers than the browser has connections.
// Without the cookie: parallel changes of one visitor's counter overwrite each other in any session.
export async function ask(path, credentials = "omit") {
  const response = await fetch(path, { cache: "no-store", credentials });
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  const body = await response.json();
  return { body, slot: body.worker.slot };
}

const either = (words) => new Intl.ListFormat("en", { type: "disjunction" }).format(words);

export async function fire() {
  element("fire").disabled = true;
  say(element("fired"), "");
  try {
    const { answers, failed } = await hits();
    const results = [answers.length ? counted(answers, failed) : "Nobody answered."];
    results.push(await session(), await cache());
    element("fired").classList.add("spoken"); // the panels show it
    say(element("fired"), results.join(" "));
  } catch (error) {
    element("fired").classList.remove("spoken");
    say(element("fired"), `Stopped: ${error.message}. Fire again.`);
  } finally {
    element("fire").disabled = false;
  }
}

async function lanes(count, one) {
  let sent = 0;
  const lane = async () => {
    while (sent < count) {
      sent += 1;
      await one();
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, lane));
}

async function hits() {
  const answers = [];
  let failed = 0;
  await lanes(REQUESTS, async () => {
    try {
      answers.push((await ask("demo/hit?close")).body);
    } catch {
      failed += 1;
    }
    element("progress").value = answers.length + failed;
    say(element("answered"), `${answers.length} of ${REQUESTS}${failed ? `, ${failed} failed` : ""}`);
    if (answers.length % 10 === 0 && answers.length) bars(answers);
  });
  return { answers, failed };
}

// What each worker's memory says, drawn to the scale of all of them, beside what Redis says.
function bars(answers) {
  const workers = new Map();
  for (const { worker, memory } of answers) {
    const seen = workers.get(worker.pid) ?? { worker, memory: 0 };
    workers.set(worker.pid, { worker, memory: Math.max(seen.memory, memory.hits) });
  }
  const total = Math.max(...answers.map(({ redis }) => redis.hits));
  const seen = [...workers.values()].sort((a, b) => a.worker.slot - b.worker.slot || a.worker.pid - b.worker.pid);
  const hostnames = new Set(seen.map(({ worker }) => worker.host));
  const all = seen.reduce((sum, { memory }) => sum + memory, 0);
  const rows = seen.map(({ worker, memory }) =>
    bar(`Worker ${worker.slot}${hostnames.size > 1 ? `, ${worker.host}` : ""}`, memory, all));
  element("bars").replaceChildren(...rows);
  element("truth").replaceChildren(bar("Redis", total, total));
  return { figures: seen.map(({ memory }) => memory), total };
}

function bar(name, value, total) {
  const row = make("li", "bar");
  const track = make("span", "track");
  const full = track.appendChild(make("span", "full"));
  full.style.setProperty("width", `${Math.min(100, (100 * value) / total)}%`); // CSSOM: the CSP forbids style="..."
  row.append(make("span", "name", name), track, make("span", "figure", number(value)));
  return row;
}

function counted(answers, failed) {
  const { figures, total } = bars(answers);
  say(element("gotcha"), figures.length > 1
    ? `How many requests came? ${either(figures.map(number))}: it depends on whom you ask.`
    : "One worker answered them all.");
  const distinct = new Set(answers.map(({ redis }) => redis.hits)).size;
  const first = Math.min(...answers.map(({ redis }) => redis.hits));
  const others = total - first + 1 - distinct;
  const exact = distinct === answers.length;
  const more = others > 0 ? ` ${plural(others, "more figure")} went to others${failed ? ", or to what failed" : ""}.` : "";
  say(element("cure"), exact
    ? `${distinct} of ${REQUESTS}, exactly: figures ${number(first)} to ${number(total)}, none twice.${more}`
    : `NOT exact: ${distinct} different figures in ${answers.length} answers.`);
  return `${plural(figures.length, "worker")} counted ${figures.join(", ")} in memory; Redis counted ${distinct} of ${REQUESTS}.`;
}

// One visitor, one request after the other: the count goes on, whoever answers.
async function session() {
  const steps = [];
  element("session").replaceChildren();
  for (let step = 0; step < STEPS; step += 1) {
    const { worker, session: own } = (await ask("demo/hit?close", "same-origin")).body;
    steps.push({ slot: worker.slot, hits: own.hits });
    const chip = make("li", "step");
    chip.append(make("span", "name", `worker ${worker.slot}`), make("span", "figure", number(own.hits)));
    element("session").append(chip);
  }
  const exact = steps.every(({ hits: seen }, step) => seen === steps[0].hits + step);
  const text = `${exact ? "No step is missing" : "NOT exact"}, over ${plural(new Set(steps.map(({ slot }) => slot)).size, "worker")}.`;
  say(element("session-verdict"), text);
  return `Your session: ${text}`;
}

async function cache() {
  const key = crypto.randomUUID?.() ?? String(Math.random()); // the first only where the page is secure
  const answers = [];
  await lanes(ASKS, async () => answers.push(await ask(`demo/cached?key=${key}&ms=${COMPUTE_MS}&close`)));
  const by = new Set(answers.map(({ body }) => body.computed_by.pid));
  const askers = [...new Set(answers.map(({ slot }) => slot))].sort((a, b) => a - b);
  const who = answers[0].body.computed_by;
  const text = by.size === 1
    ? `${ASKS} requests asked ${plural(askers.length, "worker")} (${askers.join(", ")}). Worker ${who.slot} computed it once, in ${COMPUTE_MS} ms.`
    : `NOT once: ${by.size} workers computed it.`;
  say(element("cache"), text);
  return `The slow value: ${text}`;
}
