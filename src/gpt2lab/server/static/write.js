// Write: a prompt, the settings, and a text as it is made; or the same prompt with two strategies side by side.

import { textPicture } from "./charts.js";
import { button, el, field } from "./dom.js";
import { saveButtons } from "./save.js";
import { lengthAndSeed, strategyControls, surpriseLegend, writer } from "./text.js";

export const writeView = { name: "write", title: "Write", needs: "engine", make: makeWrite };

function makeWrite({ engine, remember }) {
  const prompt = el("textarea", { rows: 2, spellcheck: false, value: remember.prompt ?? "One day", placeholder: "Text to continue; empty begins a new document" });
  prompt.addEventListener("input", () => (remember.prompt = prompt.value));
  const common = lengthAndSeed(engine.info);
  const strategies = [strategyControls(engine.info), strategyControls(engine.info, { temperature: 0.8, top_p: 1 })];
  const writers = strategies.map((strategy, n) => writer({ engine, title: `Strategy ${"AB"[n]}`, read: () => ({ ...strategy.read(), ...common.read() }), ontoken: () => refresh() }));
  const two = el("input", { type: "checkbox" });
  const start = button("Write", () => run(), { className: "primary" });
  const stop = button("Stop", () => writers.forEach((each) => each.stop()), { disabled: true });
  const shown = () => writers.slice(0, two.checked ? 2 : 1);
  const refresh = () => (stop.disabled = !writers.some((each) => each.running()));
  const run = async () => {
    const all = shown().map((each) => each.run(prompt.value));
    setTimeout(refresh);
    await Promise.all(all);
    refresh();
  };
  prompt.addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && (event.preventDefault(), run()));
  const second = el("fieldset", { hidden: true }, el("legend", { textContent: "Strategy B" }), strategies[1].node);
  const firstName = el("legend", { textContent: "Strategy" });
  const desk = el("div", { className: "desk" }, writers[0].node);
  two.addEventListener("change", () => {
    second.hidden = !two.checked;
    firstName.textContent = two.checked ? "Strategy A" : "Strategy";
    desk.classList.toggle("two", two.checked);
    if (two.checked) desk.append(writers[1].node);
    else writers[1].node.remove();
  });
  const node = el(
    "div",
    { className: "view write" },
    el("div", { className: "settings" },
      el("fieldset", {}, firstName, strategies[0].node),
      second,
      el("fieldset", {}, el("legend", { textContent: "Text" }), common.node),
      el("label", { className: "check" }, two, " Two strategies side by side"),
    ),
    el("div", { className: "stage" },
      field("Prompt", prompt),
      el("div", { className: "actions" }, start, stop, el("small", { textContent: "Ctrl + Enter writes" }), saveButtons("texts", () => `${engine.info.name}-texts`, () => textPicture({ label: `Texts of ${engine.info.name}`, texts: shown().map((each) => each.pictured()) }), () => shown().map((each) => each.saved()))),
      surpriseLegend(),
      desk,
    ),
  );
  return { node, stop: () => writers.forEach((each) => each.stop()), started: remember.prompt === undefined && run() };
}
