// What the other modules need of the document, and of people's way to read figures.

export const element = (id) => document.getElementById(id);

export function make(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// A copy of a template's content, and its parts by what they are.
export function copy(template) {
  const root = element(template).content.firstElementChild.cloneNode(true);
  const parts = Object.fromEntries([...root.querySelectorAll("[data-is]")].map((part) => [part.dataset.is, part]));
  return { root, parts };
}

// Written only when it differs: five times a second nothing should be laid out anew for nothing.
export function say(part, text) {
  if (part.textContent !== String(text)) part.textContent = text;
}

export const number = (value) => value.toLocaleString("en");

export function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
