// What the scripts of all pages share: elements, drawings and numbers. Text of others goes into text
// nodes and nowhere else.

"use strict";

globalThis.poad = globalThis.poad ?? {};

/* Make an element; attributes that begin with "on" listen to events. */
poad.element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("aria-")) made.setAttribute(key, String(value));
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
};

/* Make an element of a drawing. */
poad.drawn = (name, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};

poad.known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/* A choice between named options, in a label. */
poad.choice = (label, id, options, value, set) => poad.element("label", {}, `${label} `, poad.element("select", {
  id, onchange: (event) => set(event.target.value),
}, ...Object.entries(options).map(([key, name]) => poad.element("option", { value: key, selected: key === value }, name))));
