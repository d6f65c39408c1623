// A chat room. It connects again when the WebSocket closes, as in a reload of the workers.

const ASK_MS = 20_000; // until it asks again who is here: a killed worker cannot say who has left
const messages = document.getElementById("messages");
let socket;

function connect() {
  socket = new WebSocket(new URL(messages.dataset.url, location.href.replace(/^http/, "ws")));
  socket.addEventListener("message", (event) => show(JSON.parse(event.data)));
  // At a random time, so that not everybody connects at once.
  socket.addEventListener("close", () => setTimeout(connect, 200 + Math.random() * 2000));
}

function show({ from, text, members, missed }) {
  if (members) document.getElementById("members").textContent = members.join(", ");
  if (from) add(`${from}: ${text}`);
  if (missed) add("Messages may be missing here.");
}

function add(line) {
  const item = document.createElement("li");
  item.textContent = line;
  messages.append(item);
}

document.getElementById("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (socket.readyState !== WebSocket.OPEN) return; // the text stays in the field
  socket.send(event.target.elements.text.value);
  event.target.reset();
});
setInterval(() => socket.readyState === WebSocket.OPEN && socket.send(""), ASK_MS);
connect();
