// The controls: each does its harm, then watches until all is well again, and says how long that took.

import { tally } from "./asking.js";
import { SILENT_S } from "./cards.js";
import { element, make, plural, say } from "./dom.js";
import { ask } from "./fire.js";

const HEALED_WITHIN_MS = 30_000;
const AGAIN_MS = 200;

let token = null;
let own; // the board of the host that tells
let watching = []; // what to try on each picture

export function allow(given) {
  token = given;
}

export function watch(picture) {
  own = picture.hosts[picture.host];
  // Behind a balancer another host would get what is meant for this one.
  element("harm").hidden = !(token && own) || Object.keys(picture.hosts).length > 1;
  if (own) strip();
  watching = watching.filter((done) => !done());
}

// The workers once more, small, where the eyes are while something is broken.
function strip() {
  const chips = own.workers.map(({ slot, pid, state, beat_age_s: silence }) => {
    const chip = make("li", "", `${slot}: pid ${pid} `);
    chip.dataset.state = silence > SILENT_S ? "silent" : state;
    chip.append(make("b", "", chip.dataset.state));
    return chip;
  });
  element("strip").replaceChildren(...chips);
}

const ready = () => own.workers.filter((worker) => worker.state === "ready");
const whole = () => ready().length === own.wanted && own.workers.length === own.wanted;

// What shows that all is well after each; it is given what was there before.
const HEALED = {
  kill: (before) => whole() && !own.workers.some(({ pid }) => pid === before.pid),
  reload: (before) => whole() && own.generation > before.generation,
  more: (before) => whole() && own.wanted > before.wanted,
  fewer: (before) => whole() && own.wanted < before.wanted,
};

const seen = (after) => `${plural(own.wanted, "worker")} ready and nobody else: seen within ${after}.`;

async function send(verb, parameters) {
  const response = await fetch(`demo/control/${verb}?${new URLSearchParams(parameters)}`, {
    method: "POST",
    headers: { "X-Control-Token": token },
  });
  const { done, error } = await response.json();
  if (!response.ok) throw new Error(error);
  return done;
}

async function harm(verb) {
  const began = performance.now();
  const failed = tally.failed;
  const oldest = ready().sort((a, b) => b.age_s - a.age_s)[0];
  const before = { pid: oldest?.pid, generation: own.generation, wanted: own.wanted };
  const after = () => `${((performance.now() - began) / 1000).toFixed(1)} s`;
  const lost = () => (element("ask").checked ? ` ${plural(tally.failed - failed, "request")} failed.` : "");
  try {
    const done = await send(verb, verb === "kill" ? { pid: before.pid } : {});
    say(element("harmed"), done);
    if (verb === "pause") say(element("harmed"), `${done} ${await outage(began)}${lost()}`);
    if (!(verb in HEALED)) return;
    watching.push(() => {
      if (performance.now() - began > HEALED_WITHIN_MS) return true;
      if (!HEALED[verb](before)) return false;
      say(element("harmed"), `${done} ${seen(after())}${lost()}`);
      return true;
    });
  } catch (error) {
    say(element("harmed"), `Not done: ${error.message}.`);
  }
}

// Asks for what needs Redis until it is right again.
async function outage(began) {
  const after = () => `${((performance.now() - began) / 1000).toFixed(1)} s`;
  const refused = [];
  while (performance.now() - began < HEALED_WITHIN_MS) {
    try {
      await ask("demo/hit?close");
      const told = refused.length ? `A request that needs it was told "${refused[0].text}" after ${refused[0].after}. ` : "";
      return `${told}Right again after ${after()}.`;
    } catch (error) {
      refused.push({ text: error.message, after: after() });
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
  return "It is not right again yet.";
}

for (const button of document.querySelectorAll("[data-verb]")) {
  button.addEventListener("click", () => harm(button.dataset.verb));
}
