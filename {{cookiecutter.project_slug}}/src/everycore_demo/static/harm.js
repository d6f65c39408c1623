// The controls. Each interrupts something, waits until all workers are ready again, and shows how long that took.

import { tally } from "./asking.js";
import { SILENT_S } from "./cards.js";
import { createElement, element, plural, setText } from "./dom.js";
import { ask } from "./fire.js";

const RECOVERY_TIMEOUT_MS = 30_000;
const RETRY_MS = 200;

let token = null;
let own; // the status of the host that sends it
let pending = []; // functions to call with each status; they return true when they are done

export function allow(given) {
  token = given;
}

export function watch(status) {
  own = status.hosts[status.host];
  // With several hosts behind a load balancer, a control could reach another host than the one it is meant for.
  element("harm").hidden = !(token && own) || Object.keys(status.hosts).length > 1;
  if (own) strip();
  pending = pending.filter((isDone) => !isDone());
}

// Shows the workers again as a short list beside the controls.
function strip() {
  const chips = own.workers.map(({ slot, pid, state, heartbeat_age_s: silence }) => {
    const chip = createElement("li", "", `${slot}: pid ${pid} `);
    chip.dataset.state = silence > SILENT_S ? "silent" : state;
    chip.append(createElement("b", "", chip.dataset.state === "silent" ? "no heartbeat" : state));
    return chip;
  });
  element("strip").replaceChildren(...chips);
}

const ready = () => own.workers.filter((worker) => worker.state === "ready");
const isComplete = () => ready().length === own.wanted && own.workers.length === own.wanted;

// By control: whether the server has recovered from it, compared with the status before.
const RECOVERED = {
  kill: (before) => isComplete() && !own.workers.some(({ pid }) => pid === before.pid),
  reload: (before) => isComplete() && own.generation > before.generation,
  more: (before) => isComplete() && own.wanted > before.wanted,
  fewer: (before) => isComplete() && own.wanted < before.wanted,
};

const recovered = (after) => `${plural(own.wanted, "worker")} ready after ${after}.`;

async function send(control, parameters) {
  const response = await fetch(`demo/control/${control}?${new URLSearchParams(parameters)}`, {
    method: "POST",
    headers: { "X-Control-Token": token },
  });
  const { done, error } = await response.json();
  if (!response.ok) throw new Error(error);
  return done;
}

async function harm(control) {
  const began = performance.now();
  const failed = tally.failed;
  const oldest = ready().sort((a, b) => b.age_s - a.age_s)[0];
  const before = { pid: oldest?.pid, generation: own.generation, wanted: own.wanted };
  const after = () => `${((performance.now() - began) / 1000).toFixed(1)} s`;
  const lost = () => (element("ask").checked ? ` ${plural(tally.failed - failed, "request")} failed.` : "");
  try {
    const done = await send(control, control === "kill" ? { pid: before.pid } : {});
    setText(element("harmed"), done);
    if (control === "pause") setText(element("harmed"), `${done} ${await outage(began)}${lost()}`);
    if (!(control in RECOVERED)) return;
    pending.push(() => {
      if (performance.now() - began > RECOVERY_TIMEOUT_MS) return true;
      if (!RECOVERED[control](before)) return false;
      setText(element("harmed"), `${done} ${recovered(after())}${lost()}`);
      return true;
    });
  } catch (error) {
    setText(element("harmed"), `Failed: ${error.message}.`);
  }
}

// Sends a request that needs Redis until it succeeds.
async function outage(began) {
  const after = () => `${((performance.now() - began) / 1000).toFixed(1)} s`;
  const refused = [];
  while (performance.now() - began < RECOVERY_TIMEOUT_MS) {
    try {
      await ask("demo/hit?close");
      const failure = refused.length ? `A request that needs Redis got "${refused[0].text}" after ${refused[0].after}. ` : "";
      return `${failure}Available again after ${after()}.`;
    } catch (error) {
      refused.push({ text: error.message, after: after() });
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
  return `It is still unavailable after ${after()}.`;
}

for (const button of document.querySelectorAll("[data-verb]")) {
  button.addEventListener("click", () => harm(button.dataset.verb));
}
