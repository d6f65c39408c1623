// Helpers for the document, and for numbers as text.

export const element = (id) => document.getElementById(id);

export function createElement(name, className, text = "") {
  const created = document.createElement(name);
  created.className = className;
  created.textContent = text;
  return created;
}

// Returns a copy of a template's content, and its parts by their data-is attribute.
export function copy(template) {
  const root = element(template).content.firstElementChild.cloneNode(true);
  const parts = Object.fromEntries([...root.querySelectorAll("[data-is]")].map((part) => [part.dataset.is, part]));
  return { root, parts };
}

// Writes only a text that differs, because each write makes the browser lay out the page again.
export function setText(part, text) {
  if (part.textContent !== String(text)) part.textContent = text;
}

export const number = (value) => value.toLocaleString("en");

export function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
