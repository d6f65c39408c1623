// The stream of statuses. It reconnects when the worker that sends it ends or is blocked.

const SILENCE_MS = 2000; // a worker sends an event at least once a second: after this time it counts as blocked
const CHECK_MS = 250;

// Calls `hello` with the first event of a worker, `status` with each status, and `connection` with "live" or "lost".
export function follow({ hello, status, connection }) {
  let source;
  let received;

  function receive(event, handle) {
    received = performance.now();
    connection("live");
    handle(JSON.parse(event.data));
  }

  function open() {
    source?.close();
    received = performance.now();
    source = new EventSource("demo/events");
    source.addEventListener("hello", (event) => receive(event, hello));
    source.addEventListener("message", (event) => receive(event, status));
  }

  setInterval(() => {
    if (document.hidden || performance.now() - received < SILENCE_MS) return;
    connection("lost");
    open();
  }, CHECK_MS);

  // A browser has six connections to a host for all its tabs, so a hidden tab must not keep one.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source?.close();
    else open();
  });
  if (!document.hidden) open(); // a page may begin hidden, in a tab that is opened in the background
}
