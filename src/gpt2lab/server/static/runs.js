// The runs that the server was given, each with its curves.

import { lineChart } from "./charts.js";
import { button, decimal, duration, el, grouped } from "./dom.js";
import { saveButtons } from "./save.js";

export const runsView = { name: "runs", title: "Runs", needs: "server", make: makeRuns };

export function runHash(name, view) {
  return `#/run/${encodeURIComponent(name)}/${view}`;
}

function makeRuns({ runs }) {
  const chosen = new Set();
  const compare = button("Compare two runs", () => (location.hash = `#/compare/${[...chosen].map(encodeURIComponent).join("/")}`), { disabled: true });
  const note = el("small", { textContent: "choose two" });
  const cards = runs.map((run) => {
    const box = el("input", { type: "checkbox", ariaLabel: `Compare ${run.name}` });
    box.addEventListener("change", () => {
      box.checked ? chosen.add(run.name) : chosen.delete(run.name);
      compare.disabled = chosen.size !== 2;
    });
    const compares = run.ready && runs.length > 1;
    const series = [
      { name: "training", kind: "train", points: run.train_loss },
      { name: "validation", kind: "val", points: run.val_loss },
    ];
    const large = () => lineChart({ label: `Loss of ${run.name}`, series, width: 800, height: 320 });
    const save = run.train_loss.length > 0 && saveButtons(`curves of ${run.name}`, () => `${run.name}-curves`, large, () => ({ train_loss: run.train_loss, val_loss: run.val_loss }));
    const curve = run.train_loss.length ? lineChart({ label: `Loss of ${run.name}`, series, width: 320, height: 84, small: true }) : el("p", { className: "none", textContent: run.steps ? "no row yet" : "imported: no training curve" });
    const link = (view, title) => el("a", { href: runHash(run.name, view), textContent: title, ariaLabel: `${title}: ${run.name}` });
    const facts = [
      run.val_loss.length && ["validation loss", decimal(run.val_loss.at(-1)[1])],
      run.steps && ["steps", `${grouped(run.step)} of ${grouped(run.steps)}`],
      run.seconds && ["time", duration(run.seconds)],
    ];
    return el(
      "article",
      { className: "card run" },
      el("header", {}, el("h2", { textContent: run.name }), compares && el("label", { className: "check" }, box, " compare")),
      el("p", { className: "shape" }, el("span", { className: `state ${run.state}`, textContent: run.state }), el("span", { className: "soft", textContent: run.shape })),
      el("div", { className: "curve-box" }, curve),
      el("dl", {}, facts.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value })))),
      run.error ? el("p", { className: "status wrong", textContent: run.error }) : el("nav", { ariaLabel: run.name }, run.ready && link("write", "Write"), run.ready && link("inside", "Look inside"), run.ready && link("patch", "Patch"), run.steps && link("watch", "Watch"), save),
    );
  });
  const empty = el("p", { className: "lede", textContent: "There is no run here yet. Train one: gpt2lab quickstart, or gpt2lab train --watch." });
  const node = el("div", { className: "view runs" }, el("h1", { textContent: "Your runs" }), runs.length > 1 && el("div", { className: "actions" }, compare, note), el("div", { className: "cards" }, cards.length ? cards : empty));
  return { node, stop: () => {} };
}
