// Patch: which positions of which layers carry what distinguishes two prompts (activation patching).

import { clipped, heatGrid } from "./charts.js";
import { button, card, decimal, el, field, statusLine, visible } from "./dom.js";
import { saveButtons } from "./save.js";
import { promptIds } from "./text.js";

export const patchView = { name: "patch", title: "Patch", needs: "patch", make: makePatch };

const EXAMPLE = { clean: "One day, Mia was sad.", corrupted: "One day, Leo was sad.", answer: " She", wrong: " He" };

function makePatch({ engine, remember }) {
  const input = (key, hint, label) => {
    const control = el("input", { type: "text", spellcheck: false, value: remember[key] ?? EXAMPLE[key] });
    control.addEventListener("input", () => (remember[key] = control.value));
    control.addEventListener("keydown", (event) => event.key === "Enter" && run());
    return { control, node: field(label, control, hint) };
  };
  const inputs = {
    clean: input("clean", "leads to the answer", "Clean prompt"),
    corrupted: input("corrupted", "leads to the wrong token; as many tokens", "Corrupted prompt"),
    answer: input("answer", "its first token counts; mind the space", "Answer"),
    wrong: input("wrong", "its first token counts", "Wrong answer"),
  };
  const status = statusLine();
  const box = el("div");
  let shown = null;
  let grid = null;
  const { node: result, head } = card("Effect of restoring each state", "The model reads the corrupted prompt, but at one place its residual stream is that of the clean prompt. Blue: how much of the difference between answer and wrong answer that brings back, 1 is all of it. Orange: it makes things worse.", box);
  head.append(saveButtons("patching", () => `${engine.info.name}-patching`, () => grid?.svg(), () => shown));
  result.hidden = true;

  let control = new AbortController();
  async function run() {
    control.abort();
    const { signal } = (control = new AbortController());
    status.say("patching …");
    try {
      const first = async (key) => {
        const { ids, texts } = await engine.tokenize(inputs[key].control.value, signal);
        if (!ids.length) throw new Error(`${key} is empty; give a token`);
        return { id: ids[0], text: texts[0] };
      };
      const [clean, corrupted] = await Promise.all(["clean", "corrupted"].map((key) => promptIds(engine, inputs[key].control.value, signal)));
      const [answer, wrong] = await Promise.all(["answer", "wrong"].map(first));
      if (clean.ids.length !== corrupted.ids.length) {
        throw new Error(`the clean prompt has ${clean.ids.length} tokens (${clean.texts.map(visible).join(" ")}) and the corrupted one ${corrupted.ids.length} (${corrupted.texts.map(visible).join(" ")}); give prompts of one length`);
      }
      const { effect } = await engine.patch({ clean: clean.ids, corrupted: corrupted.ids, answer: answer.id, wrong: wrong.id }, signal);
      if (signal.aborted) return;
      shown = { clean: clean.texts, corrupted: corrupted.texts, answer: answer.text, wrong: wrong.text, effect };
      status.say(`${visible(answer.text)} against ${visible(wrong.text)}, ${effect.length} layers, ${clean.ids.length} positions`);
      draw();
    } catch (error) {
      if (!signal.aborted) status.say(error.message, true);
    }
  }
  function draw() {
    const { clean, corrupted, effect } = shown;
    const columns = clean.map((token, t) => (token === corrupted[t] ? token : `${visible(token).slice(0, 4)}/${visible(corrupted[t]).slice(0, 4)}`));
    grid = heatGrid({
      label: "Effect of patching, layer by position",
      rows: effect.map((_, l) => `layer ${l}`),
      columns,
      strength: (i, j) => effect[i][j],
      text: (i, j) => decimal(effect[i][j], 2),
      describe: (i, j) => [`After layer ${i} at `, el("b", { textContent: clean[j] === corrupted[j] ? visible(clean[j]) : `${clipped(clean[j], 20)} for ${clipped(corrupted[j], 20)}` }), `: ${decimal(effect[i][j], 4)}`],
      width: 76,
    });
    box.replaceChildren(grid.node);
    result.hidden = false;
    const most = Math.max(...effect.flat());
    const layer = effect.findIndex((row) => row.includes(most));
    grid.show(layer, effect[layer].indexOf(most));
  }
  const node = el(
    "div",
    { className: "view patch" },
    el("div", { className: "row" }, inputs.clean.node, inputs.corrupted.node),
    el("div", { className: "row short" }, inputs.answer.node, inputs.wrong.node),
    el("div", { className: "actions" }, button("Patch", run, { className: "primary" })),
    status.node,
    result,
  );
  return { node, stop: () => control.abort(), started: run() };
}
