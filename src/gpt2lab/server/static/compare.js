// Compare: two runs write from the same prompt with the same settings and seed; the token where they part is marked.

import { textPicture } from "./charts.js";
import { button, el, field } from "./dom.js";
import { saveButtons } from "./save.js";
import { lengthAndSeed, strategyControls, surpriseLegend, writer } from "./text.js";

export const compareView = { name: "compare", title: "Compare", needs: "server", make: makeCompare };

function makeCompare({ server, runs: all, names }) {
  const runs = all.filter((run) => run.ready);
  if (!runs.length) return { node: el("p", { className: "view lede", textContent: "No run has a checkpoint yet." }), stop: () => {} };
  const choice = (n) => {
    const select = el("select", {}, runs.map((run) => el("option", { value: run.name, textContent: run.name })));
    select.value = (runs.find((run) => run.name === names[n]) ?? runs[Math.min(n, runs.length - 1)]).name;
    select.addEventListener("change", () => load());
    return select;
  };
  const selects = [choice(0), choice(1)];
  const prompt = el("textarea", { rows: 2, spellcheck: false, value: "One day" });
  const parting = el("p", { className: "parting", role: "status" });
  const desk = el("div", { className: "desk two" });
  const settings = el("div", { className: "settings" });
  let writers = [];
  let asked = 0;

  const load = async () => {
    const own = ++asked;
    writers.forEach((each) => each.stop());
    parting.textContent = "loading the models …";
    try {
      const engines = await Promise.all(selects.map((select) => server.engine(select.value)));
      if (own !== asked) return;
      const strategy = strategyControls(engines[0].info, { temperature: 1, top_p: 0.9 });
      const common = lengthAndSeed(engines[0].info);
      settings.replaceChildren(el("fieldset", {}, el("legend", { textContent: "Both runs" }), strategy.node, common.node));
      writers = engines.map((engine) => writer({ engine, title: engine.info.name, read: () => ({ ...strategy.read(), ...common.read() }), ontoken: mark }));
      desk.replaceChildren(...writers.map((each) => each.node));
      parting.textContent = "Both get the same prompt, settings and random numbers.";
    } catch (error) {
      parting.textContent = error.message;
    }
  };
  const mark = () => {
    const [a, b] = writers.map((each) => each.tokens());
    const shared = Math.min(a.length, b.length);
    let n = 0;
    while (n < shared && a[n].text === b[n].text) n++;
    writers.forEach((each) =>
      [...each.output.children].forEach((node, t) => {
        node.classList.toggle("same", t < n);
        node.classList.toggle("parts", t === n && n < shared);
      }),
    );
    if (n < shared) parting.textContent = n ? `The texts agree for ${n} token${n === 1 ? "" : "s"} and part at token ${n + 1}.` : "The texts part at the first token.";
    else if (shared) parting.textContent = `The first ${shared} token${shared === 1 ? " is" : "s are"} the same.`;
  };
  const run = () => Promise.all(writers.map((each) => each.run(prompt.value)));
  const node = el(
    "div",
    { className: "view write" },
    settings,
    el("div", { className: "stage" },
      el("div", { className: "row" }, field("First run", selects[0]), field("Second run", selects[1])),
      field("Prompt", prompt),
      el("div", { className: "actions" }, button("Write", run, { className: "primary" }), button("Stop", () => writers.forEach((each) => each.stop())), saveButtons("texts", () => `compare-${selects.map((s) => s.value).join("-")}`, () => textPicture({ label: "Two runs", texts: writers.map((each) => each.pictured()) }), () => writers.map((each) => each.saved()))),
      surpriseLegend(),
      parting,
      desk,
    ),
  );
  return { node, stop: () => writers.forEach((each) => each.stop()), started: load() };
}
