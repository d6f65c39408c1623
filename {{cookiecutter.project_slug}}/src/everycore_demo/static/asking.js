// Asks at a small, constant rate, so that a failure would show while something is broken.

import { element, number, say } from "./dom.js";

const EVERY_MS = 50;
const AT_ONCE = 4; // the stream and the controls need a connection each, and a browser has six
const PATIENCE_MS = 10_000;

export const tally = { answered: 0, failed: 0, slowest: 0 };
let inFlight = 0;

async function once() {
  const began = performance.now();
  inFlight += 1;
  try {
    const signal = AbortSignal.timeout(PATIENCE_MS);
    const response = await fetch("demo/cached?key=asking&ms=0&close", { cache: "no-store", credentials: "omit", signal });
    await response.arrayBuffer();
    tally[response.ok ? "answered" : "failed"] += 1;
  } catch {
    tally.failed += 1;
  }
  inFlight -= 1;
  tally.slowest = Math.max(tally.slowest, performance.now() - began);
  show();
}

function show() {
  say(element("asked-ok"), number(tally.answered));
  say(element("asked-failed"), number(tally.failed));
  say(element("asked-slowest"), number(Math.round(tally.slowest)));
  element("asked-failed").classList.toggle("bad", tally.failed > 0);
}

setInterval(() => {
  if (element("ask").checked && !document.hidden && inFlight < AT_ONCE) once();
}, EVERY_MS);

element("ask").addEventListener("change", () => {
  if (element("ask").checked) Object.assign(tally, { answered: 0, failed: 0, slowest: 0 });
  show();
});
