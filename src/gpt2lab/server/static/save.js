// Saving what is shown: a picture as SVG or PNG with its colors resolved, and its numbers as JSON.

import { button, el } from "./dom.js";

const SVG_STYLE = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "opacity", "font-family", "font-size", "font-weight", "text-anchor"];

// The buttons of what has this title: `picture` gives its <svg>, `numbers` its values; either may be missing.
export function saveButtons(title, name, picture, numbers) {
  const file = (extension) => `${name().replace(/[^\w.-]+/g, "-")}.${extension}`;
  return el(
    "span",
    { className: "save", role: "group", ariaLabel: `Save: ${title}` },
    picture && button("SVG", () => download(file("svg"), new Blob([standalone(picture())], { type: "image/svg+xml" }))),
    picture && button("PNG", async () => download(file("png"), await painted(picture()))),
    numbers && button("JSON", () => download(file("json"), new Blob([JSON.stringify(numbers(), plain, 1)], { type: "application/json" }))),
  );
}

function plain(_, value) {
  return value instanceof Float32Array ? Array.from(value, (x) => Number(x.toPrecision(6))) : value;
}

function download(name, blob) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// A picture that is not in the page has no computed style: put it there, out of sight, for the time of `read`.
function inPage(svg, read) {
  if (svg.isConnected) return read();
  const holder = el("div", { className: "offstage", ariaHidden: "true" }, svg);
  document.body.append(holder);
  try {
    return read();
  } finally {
    holder.remove();
  }
}

function paper() {
  return getComputedStyle(document.body).backgroundColor;
}

function standalone(svg) {
  return inPage(svg, () => {
    const copy = svg.cloneNode(true);
    const originals = svg.querySelectorAll("*");
    [...copy.querySelectorAll("*")].forEach((node, i) => {
      const style = getComputedStyle(originals[i]);
      for (const name of SVG_STYLE) node.setAttribute(name, style.getPropertyValue(name));
      node.removeAttribute("class");
      node.removeAttribute("style");
    });
    const { width, height } = svg.viewBox.baseVal;
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.removeAttribute("tabindex");
    const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({ width, height, fill: paper() })) ground.setAttribute(key, value);
    copy.prepend(ground);
    return new XMLSerializer().serializeToString(copy).replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, "\ufffd"); // XML has no such characters
  });
}

// The same picture on a canvas, element by element: an <img> of the SVG would need a looser content policy.
function painted(svg, scale = 2) {
  const { width, height } = svg.viewBox.baseVal;
  const fitted = Math.min(scale, 8000 / Math.max(width, height));
  const canvas = el("canvas", { width: Math.ceil(width * fitted), height: Math.ceil(height * fitted) });
  const context = canvas.getContext("2d");
  context.scale(fitted, fitted);
  context.fillStyle = paper();
  context.fillRect(0, 0, width, height);
  inPage(svg, () => {
    const from = svg.getScreenCTM().inverse();
    for (const node of svg.querySelectorAll("rect, path, line, circle, text")) paint(context, node, from.multiply(node.getScreenCTM()));
  });
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function paint(context, node, matrix) {
  const style = getComputedStyle(node);
  if (style.display === "none") return;
  const at = (name) => Number(node.getAttribute(name) ?? 0);
  context.save();
  context.transform(matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f);
  context.fillStyle = style.fill === "none" ? "transparent" : style.fill;
  context.strokeStyle = style.stroke === "none" ? "transparent" : style.stroke;
  context.lineWidth = parseFloat(style.strokeWidth);
  context.setLineDash(style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(/[ ,]+/).map(parseFloat));
  const alpha = Number(style.opacity);
  if (node.tagName === "text") {
    context.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
    context.textAlign = { middle: "center", end: "right" }[style.textAnchor] ?? "left";
    context.globalAlpha = alpha * Number(style.fillOpacity);
    context.fillText(node.textContent, at("x"), at("y"));
  } else {
    const shape = shapeOf(node, at);
    context.globalAlpha = alpha * Number(style.fillOpacity);
    if (node.tagName !== "line") context.fill(shape);
    context.globalAlpha = alpha * Number(style.strokeOpacity);
    context.stroke(shape);
  }
  context.restore();
}

function shapeOf(node, at) {
  if (node.tagName === "path") return new Path2D(node.getAttribute("d"));
  const shape = new Path2D();
  if (node.tagName === "rect") shape.rect(at("x"), at("y"), at("width"), at("height"));
  if (node.tagName === "circle") shape.arc(at("cx"), at("cy"), at("r"), 0, 2 * Math.PI);
  if (node.tagName === "line") {
    shape.moveTo(at("x1"), at("y1"));
    shape.lineTo(at("x2"), at("y2"));
  }
  return shape;
}
