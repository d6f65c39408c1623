// Sends requests at a small, constant rate, so that a failure shows while something is broken.

import { element, number, setText } from "./dom.js";

const INTERVAL_MS = 50;
const CONCURRENCY = 4; // a browser has six connections to a host, and the stream and the controls need one each
const TIMEOUT_MS = 10_000;

export const tally = { answered: 0, failed: 0, slowest: 0 };
let inFlight = 0;

async function send() {
  const began = performance.now();
  inFlight += 1;
  try {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
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
  setText(element("asked-ok"), number(tally.answered));
  setText(element("asked-failed"), number(tally.failed));
  setText(element("asked-slowest"), number(Math.round(tally.slowest)));
  element("asked-failed").classList.toggle("bad", tally.failed > 0);
}

setInterval(() => {
  if (element("ask").checked && !document.hidden && inFlight < CONCURRENCY) send();
}, INTERVAL_MS);

element("ask").addEventListener("change", () => {
  if (element("ask").checked) Object.assign(tally, { answered: 0, failed: 0, slowest: 0 });
  show();
});
