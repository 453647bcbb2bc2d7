// Elements, controls and numbers. Text of a model or a user only ever becomes a text node.

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list" && name !== "form") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function percent(p) {
  if (Number.isNaN(p)) return "–";
  if (p === 0) return "0 %";
  if (p < 0) return `−${percent(-p)}`;
  const value = 100 * p;
  return value < 0.01 ? "<0.01 %" : `${value < 1 ? value.toFixed(2) : value.toFixed(1)} %`;
}

export function decimal(value, digits = 3) {
  const text = Number.isFinite(value) ? value.toFixed(digits) : "not finite";
  return text.replace(/^-(?!0\.0*$)/, "−").replace(/^-/, "");
}

export function grouped(value) {
  return Math.round(value).toString().replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

export function short(value) {
  const units = [[1e9, " B"], [1e6, " M"], [1e3, " k"]];
  for (const [size, unit] of units) if (value >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  return String(value);
}

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
}

export function plural(n, word) {
  return `${grouped(n)} ${word}${n === 1 ? "" : "s"}`;
}

// A token alone, with its white space made visible: " the" is "␣the".
export function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}

export function debounce(wait, run) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...args), wait);
  };
}

let fieldNumber = 0;

// A labelled control with a line of explanation below it.
export function field(label, control, hint = "") {
  control.id ||= `field-${++fieldNumber}`;
  const note = hint && el("small", { id: `${control.id}-hint`, textContent: hint });
  if (note) control.setAttribute("aria-describedby", note.id);
  return el("div", { className: "field" }, el("label", { htmlFor: control.id, textContent: label }), control, note);
}

// A slider and the same number to type; `read` gives it, within the limits.
export function slider({ label, min, max, step, value, hint }) {
  const range = el("input", { type: "range", min, max, step, value });
  const number = el("input", { type: "number", min, max, step, value, ariaLabel: `${label}, as a number` });
  range.addEventListener("input", () => (number.value = range.value));
  number.addEventListener("input", () => (range.value = number.value));
  number.addEventListener("change", () => (number.value = range.value = String(read())));
  const read = () => Math.min(max, Math.max(min, number.value === "" ? value : Number(number.value)));
  const node = field(label, range, hint);
  node.classList.add("slider");
  node.insertBefore(number, node.lastChild === range ? null : node.lastChild);
  const disable = (off) => (range.disabled = number.disabled = off);
  return { node, read, disable };
}

export function check(label, checked = false) {
  const box = el("input", { type: "checkbox", checked });
  return { node: el("label", { className: "check" }, box, ` ${label}`), box };
}

export function button(label, onclick, props = {}) {
  return el("button", { type: "button", textContent: label, onclick, ...props });
}

// A line for what is going on and for errors; it keeps its place, so that nothing jumps.
export function statusLine() {
  const node = el("p", { className: "status", role: "status" });
  const say = (text, wrong = false) => {
    node.textContent = text;
    node.classList.toggle("wrong", wrong);
  };
  return { node, say };
}

export function card(title, note, ...children) {
  const head = el("header", {}, el("h2", { textContent: title }));
  const node = el("section", { className: "card", ariaLabel: title }, head, note && el("p", { className: "note", textContent: note }), ...children);
  return { node, head };
}

// Arrow keys move among the children of a list of which one can be focused.
export function roving(list, selector, vertical = false) {
  const items = () => [...list.querySelectorAll(selector)];
  const keys = vertical ? { ArrowUp: -1, ArrowDown: 1 } : { ArrowLeft: -1, ArrowRight: 1 };
  list.addEventListener("keydown", (event) => {
    const all = items();
    const at = all.indexOf(document.activeElement);
    const to = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : at + (keys[event.key] ?? NaN);
    if (at < 0 || !(to >= 0 && to < all.length)) return;
    event.preventDefault();
    all[to].focus();
  });
  list.addEventListener("focusin", (event) => {
    for (const item of list.querySelectorAll(`${selector}[tabindex="0"]`)) item.tabIndex = -1;
    if (event.target.matches(selector)) event.target.tabIndex = 0;
  });
}
