// The demo page: fires requests at /demo/hit and shows who counted what.

const REQUESTS = 200;
const AT_ONCE = 6; // as many connections as a browser opens to one host
const STEPS = 10; // of the visitor whose session is followed

const element = (id) => document.getElementById(id);

async function fire() {
  const answers = [];
  let failed = 0;
  let sent = 0;
  const lane = async () => {
    while (sent < REQUESTS) {
      sent += 1;
      try {
        answers.push(await hit("omit"));
      } catch {
        failed += 1;
      }
      element("progress").textContent = `${answers.length} of ${REQUESTS} answered${failed ? `, ${failed} failed` : ""}`;
    }
  };
  element("fire").disabled = true;
  await Promise.all(Array.from({ length: AT_ONCE }, lane));
  if (answers.length) show(answers);
  await follow().catch(() => { element("session").textContent = "no answer"; });
  element("fire").disabled = false;
}

async function hit(credentials) {
  const response = await fetch("demo/hit", { cache: "no-store", credentials });
  if (!response.ok) throw new Error(response.status);
  return response.json();
}

// One visitor, one request after the other: the session counts on, whoever answers.
async function follow() {
  const steps = [];
  for (let step = 0; step < STEPS; step += 1) {
    const { worker, session } = await hit("same-origin");
    steps.push(`worker ${worker.slot}: ${session.hits}`);
    element("session").textContent = steps.join(" → ");
  }
}

function show(answers) {
  const workers = new Map();
  for (const { worker, memory } of answers) {
    const seen = workers.get(worker.pid) ?? { worker, answered: 0, memory: 0 };
    seen.answered += 1;
    seen.memory = Math.max(seen.memory, memory.hits);
    workers.set(worker.pid, seen);
  }
  const rows = [...workers.values()].sort((a, b) => a.worker.slot - b.worker.slot);
  element("workers").replaceChildren(...rows.map(row));
  element("redis").textContent = Math.max(...answers.map((answer) => answer.redis.hits));
}

function row({ worker, answered, memory }) {
  const line = document.createElement("tr");
  for (const text of [`worker ${worker.slot}`, worker.pid, answered, memory]) {
    line.append(Object.assign(document.createElement("td"), { textContent: text }));
  }
  return line;
}

element("fire").addEventListener("click", fire);
