// The stream of events. No event is lost or repeated: not when the browser connects again, which sends the last id by
// itself, and not when this page does, which sends it in the query.

const list = document.getElementById("events");
const connection = document.getElementById("connection");
let last = "0-0"; // the id of the newest event that is shown; "0-0" is before all events
let source;

function open() {
  source?.close();
  source = new EventSource(`${list.dataset.url}?after=${last}`);
  source.addEventListener("open", () => (connection.textContent = "Live"));
  source.addEventListener("error", () => {
    connection.textContent = "Connection lost, reconnecting";
    // The browser tries again, but not after a response with an error status.
    if (source.readyState === EventSource.CLOSED) setTimeout(update, 1000);
  });
  source.addEventListener("message", (event) => {
    last = event.lastEventId;
    const item = document.createElement("li");
    item.textContent = JSON.parse(event.data).text;
    list.append(item);
  });
}

// A browser has six connections to a host for all its tabs together, so a hidden tab must not hold one.
function update() {
  if (document.hidden) source?.close();
  else open();
}

document.addEventListener("visibilitychange", update);
document.getElementById("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const answer = await fetch(form.action, { method: "POST", body: new FormData(form) });
  if (answer.ok) form.reset();
});
update();
