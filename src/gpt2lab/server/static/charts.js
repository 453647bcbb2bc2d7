// Pictures as SVG. Colors are classes of style.css, so that they follow the theme; strength is opacity.

import { el, short, visible } from "./dom.js";

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function picture(width, height, label, ...children) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, ...children);
}

export function writeAt(x, y, text, attributes = {}) {
  const node = svg("text", { x, y, ...attributes });
  node.textContent = text;
  return node;
}

export function clipped(text, length) {
  const shown = [...visible(text)];
  return shown.length > length ? `${shown.slice(0, length - 1).join("")}…` : shown.join("");
}

const round = (x) => Math.round(x * 100) / 100;

// A table of colored cells (rows by positions). The pointer or the arrow keys choose a cell; `describe(i, j)` says what
// it holds, and `onpick(i, j)` hears of it. `strength(i, j)` is from -1 (orange) to 1 (blue); `text(i, j)` stands in it.
export function heatGrid({ label, rows, columns, strength, text, describe, onpick, row = rows.length - 1, width = 58, height = 26, left = 82 }) {
  const top = 30;
  const size = [left + columns.length * width + 1, top + rows.length * height + 1];
  const cells = svg("g");
  rows.forEach((_, i) =>
    columns.forEach((_, j) => {
      const value = Math.max(-1, Math.min(1, strength(i, j) || 0));
      const [x, y] = [left + j * width, top + i * height];
      cells.append(svg("rect", { x, y, width: width - 1, height: height - 1, class: value < 0 ? "heat against" : "heat", "fill-opacity": round(Math.abs(value) * 0.85) }));
      if (text) cells.append(writeAt(x + width / 2 - 0.5, y + height / 2 + 4, text(i, j), { class: "cell", "text-anchor": "middle" }));
    }),
  );
  const head = columns.map((token, j) => writeAt(left + j * width + width / 2 - 0.5, top - 10, clipped(token, Math.floor(width / 7.5)), { class: "head", "text-anchor": "middle" }));
  const names = svg("g", {}, svg("rect", { x: 0, y: 0, width: left - 2, height: size[1], class: "ground" }), rows.map((name, i) => writeAt(left - 10, top + i * height + height / 2 + 4, name, { class: "head", "text-anchor": "end" })));
  const cursor = svg("rect", { width: width - 1, height: height - 1, class: "cursor", x: -99, y: -99 });
  const image = picture(...size, label, cells, head, cursor, names);
  image.setAttribute("tabindex", "0");
  image.setAttribute("role", "application");
  image.setAttribute("aria-roledescription", "heat map, arrow keys move");
  const readout = el("p", { className: "readout", ariaLive: "polite" });
  const scroller = el("div", { className: "scroller" }, image);
  scroller.addEventListener("scroll", () => names.setAttribute("transform", `translate(${scroller.scrollLeft} 0)`));
  let at = [row, columns.length - 1];
  const show = (i, j, reveal = true) => {
    at = [i, j];
    cursor.setAttribute("x", left + j * width);
    cursor.setAttribute("y", top + i * height);
    readout.replaceChildren(...[describe(i, j)].flat());
    const x = left + j * width;
    const hidden = x < scroller.scrollLeft + left || x + width > scroller.scrollLeft + scroller.clientWidth;
    if (reveal && hidden) scroller.scrollLeft = x - Math.max(left, scroller.clientWidth / 2);
  };
  const pick = (i, j, reveal) => {
    show(i, j, reveal);
    onpick?.(i, j);
  };
  const under = (event) => {
    const box = image.getBoundingClientRect();
    const scale = size[0] / box.width;
    const j = Math.floor(((event.clientX - box.left) * scale - left) / width);
    const i = Math.floor(((event.clientY - box.top) * scale - top) / height);
    return i >= 0 && i < rows.length && j >= 0 && j < columns.length ? [i, j] : null;
  };
  for (const kind of ["pointermove", "click"]) {
    image.addEventListener(kind, (event) => {
      const cell = under(event);
      if (cell && (kind === "click" || cell[0] !== at[0] || cell[1] !== at[1])) (kind === "click" ? pick : show)(...cell, false);
    });
  }
  image.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    pick(Math.min(rows.length - 1, Math.max(0, at[0] + move[0])), Math.min(columns.length - 1, Math.max(0, at[1] + move[1])));
  });
  show(...at);
  const node = el("div", { className: "grid" }, scroller, readout);
  const still = () => {
    names.removeAttribute("transform");
    return image;
  };
  return { node, svg: still, show, at: () => at };
}

// The matrix of one head: queries are rows, keys columns. Weights are drawn in LEVELS steps of either sign, a path for each.
const LEVELS = 32;
export function weightPaths(weights, T, cell, x0 = 0, y0 = 0) {
  const paths = new Map();
  for (let q = 0; q < T; q++) {
    for (let k = 0; k < T; k++) {
      const weight = weights(q, k);
      const level = Math.sign(weight) * Math.min(LEVELS, Math.round(Math.sqrt(Math.abs(weight)) * LEVELS));
      if (level) paths.set(level, `${paths.get(level) ?? ""}M${round(x0 + k * cell)} ${round(y0 + q * cell)}h${round(cell * 0.96)}v${round(cell * 0.96)}h-${round(cell * 0.96)}z`);
    }
  }
  const opacity = (part) => round(part ** 2 * 0.45 + part * 0.5);
  return [...paths].sort((a, b) => a[0] - b[0]).map(([level, d]) => svg("path", { d, class: level < 0 ? "heat against" : "heat", "fill-opacity": opacity(Math.abs(level) / LEVELS) }));
}

export function attentionMatrix({ label, texts, weights, chosen, onpick }) {
  const T = texts.length;
  const cell = Math.max(5, Math.min(28, 460 / T));
  const [left, top] = [92, 14];
  const size = [left + T * cell + 44, top + T * cell + 84];
  const every = Math.ceil(11 / cell);
  const named = (t) => t % every === 0 || t === T - 1;
  const image = picture(
    ...size,
    label,
    svg("rect", { x: left, y: top, width: T * cell, height: T * cell, class: "field-ground" }),
    svg("rect", { x: left, y: top + chosen * cell, width: T * cell, height: cell, class: "chosen-row" }),
    weightPaths(weights, T, cell, left, top),
    texts.map((text, t) => named(t) && writeAt(left - 8, top + (t + 0.5) * cell + 4, clipped(text, 11), { class: t === chosen ? "head chosen" : "head", "text-anchor": "end" })),
    texts.map((text, t) => named(t) && writeAt(0, 0, clipped(text, 10), { class: "head", transform: `translate(${round(left + (t + 0.5) * cell + 3)} ${top + T * cell + 12}) rotate(60)` })),
  );
  image.addEventListener("click", (event) => {
    const box = image.getBoundingClientRect();
    const q = Math.floor((((event.clientY - box.top) * size[1]) / box.height - top) / cell);
    if (q >= 0 && q < T) onpick(q);
  });
  return image;
}

// The same weights as arcs over the text: from a query to the left to what it reads; the chosen query stands out.
export function attentionArcs({ label, texts, weights, chosen }) {
  const widths = texts.map((text) => Math.max(22, 8.4 * Math.min(11, [...visible(text)].length) + 12));
  const middles = widths.map((width, t) => widths.slice(0, t).reduce((a, b) => a + b, 6) + width / 2);
  const total = middles.at(-1) + widths.at(-1) / 2 + 6;
  const base = Math.min(230, 40 + total / 4);
  const arc = (q, k, weight, kind) => {
    const [a, b] = [middles[k], middles[q]];
    const height = q === k ? 16 : Math.min(base - 12, 14 + (b - a) * 0.42);
    const d = q === k ? `M${a - 5} ${base}C${a - 9} ${base - height} ${a + 9} ${base - height} ${a + 5} ${base}` : `M${round(a)} ${base}C${round(a)} ${round(base - height * 1.3)} ${round(b)} ${round(base - height * 1.3)} ${round(b)} ${base}`;
    const size = Math.min(1, Math.abs(weight));
    return svg("path", { d, class: weight < 0 ? `${kind} against` : kind, "stroke-width": round(0.6 + 4.4 * size), "stroke-opacity": round(kind === "arc" ? 0.5 * size : 0.25 + 0.75 * size) });
  };
  const arcs = [];
  for (let q = 0; q < texts.length; q++) {
    for (let k = 0; k < texts.length; k++) {
      const weight = weights(q, k);
      if (q !== chosen && Math.abs(weight) > 0.15) arcs.push(arc(q, k, weight, "arc"));
    }
  }
  for (let k = 0; k < texts.length; k++) if (Math.abs(weights(chosen, k)) > 0.01) arcs.push(arc(chosen, k, weights(chosen, k), "arc chosen"));
  const words = texts.map((text, t) => writeAt(middles[t], base + 18, clipped(text, 11), { class: t === chosen ? "head chosen" : "head", "text-anchor": "middle" }));
  return picture(total, base + 28, label, arcs, words);
}

// Bars by position, one beside the other where there are two: [{values, kind}].
export function barChart({ label, texts, series, width, unit, onpick }) {
  const [left, height, foot] = [44, 150, 84];
  const step = Math.max(9, Math.min(46, (width - left - 40) / texts.length));
  const most = Math.max(1e-9, ...series.flatMap(({ values }) => values.filter(Number.isFinite)));
  const total = Math.max(width, left + texts.length * step + 40);
  const y = (value) => 20 + height * (1 - value / most);
  const ticks = niceTicks(0, most, 4);
  const bars = series.map(({ values, kind }) =>
    values.map((value, t) => Number.isFinite(value) && svg("rect", { x: round(left + t * step + 1), y: round(y(value)), width: round(step - 2), height: round(height + 20 - y(value)), class: kind })),
  );
  const image = picture(
    total,
    height + foot,
    label,
    ticks.map((tick) => [svg("line", { x1: left, x2: total, y1: round(y(tick)), y2: round(y(tick)), class: "rule" }), writeAt(left - 8, y(tick) + 4, String(tick), { class: "head", "text-anchor": "end" })]),
    bars,
    texts.map((text, t) => (step >= 12 || t % 2 === 0) && writeAt(0, 0, clipped(text, 9), { class: "head", transform: `translate(${round(left + (t + 0.5) * step - 3)} ${height + 32}) rotate(55)` })),
    writeAt(left, 11, unit, { class: "head" }),
  );
  image.addEventListener("click", (event) => {
    const box = image.getBoundingClientRect();
    const t = Math.floor((((event.clientX - box.left) * total) / box.width - left) / step);
    if (t >= 0 && t < texts.length) onpick?.(t);
  });
  return image;
}

// What a list of bars shows: [{text, values}], with the last value as a bar and the first of several as an outline.
export function barsPicture({ label, names, rows, numbers }) {
  const [left, track, column, top, step] = [110, 200, 74, 44, 24];
  const last = names.length - 1;
  const most = Math.max(1e-9, ...rows.flatMap(({ values }) => [values[0], values[last]]).filter(Number.isFinite).map(Math.abs));
  const bar = (value, y, height, kind) => value && Number.isFinite(value) && svg("rect", { x: left, y, height, width: round((track * Math.abs(value)) / most), class: value < 0 ? "bar-after" : kind });
  const right = (n) => left + track + (n + 1) * column + 20 * last;
  return picture(
    right(last) + 10,
    top + rows.length * step + 8,
    label,
    writeAt(8, 16, label, { class: "head" }),
    names.map((name, n) => writeAt(right(n), 36, name, { class: "head", "text-anchor": "end" })),
    rows.map(({ text, values }, i) => {
      const y = top + i * step;
      return [writeAt(8, y + 15, clipped(text, 13)), last > 0 && bar(values[0], y + 2, 17, "bar-ghost"), bar(values[last], y + 5, 11, "bar-before"), values.map((value, n) => writeAt(right(n), y + 15, numbers(value), { "text-anchor": "end" }))];
    }),
  );
}

// Texts below one another, their tokens colored: [{title, note, tokens: [{text, strength, parts}]}]; a prompt has no strength.
export function textPicture({ label, texts, width = 760 }) {
  const pen = el("canvas").getContext("2d");
  pen.font = `18px ${getComputedStyle(document.body).getPropertyValue("--serif")}`;
  const [margin, line] = [16, 31];
  const nodes = [];
  let y = 8;
  for (const { title, note, tokens } of texts) {
    let x = margin;
    nodes.push(writeAt(margin, (y += 22), `${title} · ${note}`, { class: "head" }));
    y += line;
    for (const { text, strength, parts } of tokens) {
      text.split("\n").forEach((piece, n) => {
        if (n) [x, y] = [margin, y + line];
        if (x > margin && x + pen.measureText(piece).width > width - margin) [x, y, piece] = [margin, y + line, piece.trimStart()];
        const length = pen.measureText(piece).width;
        const space = /^ ./.test(piece) ? pen.measureText(" ").width : 0; // which is not colored
        if (strength !== undefined) nodes.push(svg("rect", { x: round(x + space), y: y - 20, width: round(length - space), height: 27, class: "surprised", "fill-opacity": round(strength) }));
        nodes.push(writeAt(round(x), y, piece.replace(/ /g, "\u00a0"), { class: strength === undefined ? "prose soft" : parts ? "prose parts" : "prose" }));
        x += length;
      });
    }
    y += 14;
  }
  return picture(width, y + 10, label, nodes);
}

export function niceTicks(low, high, about) {
  const raw = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high * (1 + 1e-9); n++) ticks.push(Number((n * step).toPrecision(6)));
  return ticks;
}

// Curves over steps: [{name, kind, points: [[x, y], ...]}]. Spikes far above the rest are cut at the top of the frame.
export function lineChart({ label, series, width, height, xLabel = "step", names = true, small = false }) {
  const points = series.flatMap((curve) => curve.points);
  if (!points.length) return picture(width, height, `${label}: nothing yet`, writeAt(width / 2, height / 2, "nothing yet", { class: "head", "text-anchor": "middle" }));
  const [left, right, top, foot] = small ? [4, 4, 6, 4] : [52, 16, 14, 34];
  const ys = points.map((p) => p[1]).sort((a, b) => a - b);
  const low = ys[0];
  const usual = ys[Math.floor((ys.length - 1) * 0.98)];
  const high = Math.max(ys.at(-1) > 3 * usual ? usual : ys.at(-1), low + Math.max(Math.abs(low) * 1e-3, 1e-12));
  const [first, last] = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  const pad = (high - low) * 0.06;
  const x = (value) => left + ((value - first) / (last - first || 1)) * (width - left - right);
  const y = (value) => Math.max(top - 4, top + (1 - (value - low + pad) / (high - low + 2 * pad)) * (height - top - foot));
  const curves = series.map(({ kind, points: own }) => [
    svg("path", { d: own.map((p, i) => `${i ? "L" : "M"}${round(x(p[0]))} ${round(y(p[1]))}`).join(""), class: `curve ${kind}` }),
    own.length < 30 && !small && own.map((p) => svg("circle", { cx: round(x(p[0])), cy: round(y(p[1])), r: 2.6, class: `dot ${kind}` })),
  ]);
  if (small) return picture(width, height, label, curves);
  const tickText = (value) => (value >= 1e3 ? short(value) : value && Math.abs(value) < 1e-3 ? value.toExponential(0).replace("-", "−") : String(value));
  return picture(
    width,
    height,
    label,
    niceTicks(low, high, 4).map((tick) => [svg("line", { x1: left, x2: width - right, y1: round(y(tick)), y2: round(y(tick)), class: "rule" }), writeAt(left - 8, y(tick) + 4, tickText(tick), { class: "head", "text-anchor": "end" })]),
    niceTicks(first, last, Math.max(2, Math.floor(width / 130))).map((tick) => writeAt(x(tick), height - foot + 18, tick.toLocaleString("en-US"), { class: "head", "text-anchor": "middle" })),
    writeAt(width - right, height - 2, xLabel, { class: "head", "text-anchor": "end" }),
    curves,
    names && series.map(({ name, kind }, i) => [svg("line", { x1: width - right - 110, x2: width - right - 86, y1: top + 6 + i * 20, y2: top + 6 + i * 20, class: `curve ${kind}` }), writeAt(width - right - 80, top + 10 + i * 20, name, { class: "head" })]),
  );
}
