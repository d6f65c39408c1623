// The stream: pictures of the cluster as they come. It outlives the worker that sends it.

const SILENCE_MS = 2000; // a worker says something each second: one that does not is stuck, and another is asked
const LOOK_MS = 250;

// Calls `hello` when a worker begins to tell, `picture` for each picture, and `link` with "live" or "lost".
export function follow({ hello, picture, link }) {
  let source;
  let heard;

  function hear(event, tell) {
    heard = performance.now();
    link("live");
    tell(JSON.parse(event.data));
  }

  function open() {
    source?.close();
    heard = performance.now();
    source = new EventSource("demo/events");
    source.addEventListener("hello", (event) => hear(event, hello));
    source.addEventListener("message", (event) => hear(event, picture));
  }

  setInterval(() => {
    if (document.hidden || performance.now() - heard < SILENCE_MS) return;
    link("lost");
    open();
  }, LOOK_MS);

  // A browser has six connections to a host for all its tabs: one that nobody sees must hold none of them.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source.close();
    else open();
  });
  open();
}
