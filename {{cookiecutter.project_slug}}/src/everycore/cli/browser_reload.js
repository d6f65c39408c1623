// Reloads the page when a newer generation of the app is ready. `dev` adds this script to each page. A page that must
// not be loaded again has <html data-dev-reload="off">.
"use strict";
(() => {
  if (document.documentElement.dataset.devReload === "off") return;
  const script = new URL(document.currentScript.src);
  const [primary, generation] = script.searchParams.get("shown").split(".");
  let events;

  function follow() {
    events?.close();
    if (document.hidden) return; // a browser opens at most six connections for all tabs of a site
    events = new EventSource(new URL("generation", script));
    events.onmessage = ({ data }) => {
      const [newPrimary, newGeneration] = data.split(".");
      if (newPrimary !== primary || Number(newGeneration) > Number(generation)) location.reload();
    };
    events.onerror = ({ target }) => {
      if (target.readyState === EventSource.CLOSED) setTimeout(follow, 500); // the answer was an error of a proxy
    };
  }

  document.addEventListener("visibilitychange", follow);
  follow();
})();
