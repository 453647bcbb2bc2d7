// Watch: the live page of a training, from the files of its run directory as server-sent events.

import { lineChart } from "./charts.js";
import { card, decimal, duration, el, grouped } from "./dom.js";
import { saveButtons } from "./save.js";

export const watchView = { name: "watch", title: "Watch", needs: "server", make: makeWatch };

function makeWatch({ server, name }) {
  let rows = [];
  let samples = [];
  let info = { steps: null, state: "waiting" };
  const value = () => el("dd", { textContent: "–" });
  const shown = { step: value(), train: value(), val: value(), speed: value(), left: value(), state: value() };
  const fact = (label, node) => el("div", {}, el("dt", { textContent: label }), node);
  const bar = el("progress", { max: 1, value: 0, ariaLabel: "Steps done" });
  const pictures = {};
  const chart = (title, key, height, series) => {
    const box = el("div", { className: "chart" });
    const { node, head } = card(title, "", box);
    head.append(saveButtons(title, () => `${name}-${key}`, () => pictures[key], () => rows));
    const draw = () => {
      pictures[key] = lineChart({ label: title, series: series(), width: Math.max(280, box.clientWidth || 800), height, names: key === "loss" });
      box.replaceChildren(pictures[key]);
    };
    return { node, draw };
  };
  const points = (column) => rows.filter((row) => row[column] !== null).map((row) => [row.step, row[column]]);
  const charts = [
    chart("Loss", "loss", 320, () => [{ name: "training", kind: "train", points: thinned(points("train_loss")) }, { name: "validation", kind: "val", points: points("val_loss") }]),
    chart("Learning rate", "learning-rate", 170, () => [{ name: "learning rate", kind: "plain", points: thinned(points("lr")) }]),
    chart("Tokens per second", "speed", 170, () => [{ name: "tokens/s", kind: "plain", points: thinned(points("tokens_per_s")) }]),
  ];
  const texts = el("div", { className: "samples" });
  const written = card("Samples", "Texts that the model wrote during training, the newest first.", texts);
  written.head.append(saveButtons("samples", () => `${name}-samples`, null, () => samples));

  const table = el("div", { className: "scroller" });
  const measured = card("Evaluations", "What was measured besides the validation loss.", table);
  const drawEvaluations = () => {
    measured.node.hidden = !info.evals?.length;
    const row = (cells, kind) => el("tr", {}, cells.map((text) => el(kind, { textContent: text })));
    const rows = (info.evals ?? []).map(({ step, task, split, metric, value: found }) => row([step, task, split, metric.replace(/_/g, " "), decimal(Number(found), 4)], "td"));
    table.replaceChildren(el("table", {}, el("thead", {}, row(["step", "task", "split", "metric", "value"], "th")), el("tbody", {}, rows)));
  };

  const left = () => {
    if (info.state !== "training" || rows.length < 2) return "–";
    const [a, b] = [rows[Math.max(0, rows.length - 20)], rows.at(-1)];
    return duration(((b.seconds - a.seconds) / (b.step - a.step)) * (info.steps - b.step));
  };
  const draw = () => {
    const last = rows.at(-1);
    const val = points("val_loss").at(-1);
    shown.state.textContent = info.state;
    shown.left.textContent = left();
    if (last) {
      shown.step.textContent = `${grouped(last.step)} of ${grouped(info.steps)}`;
      shown.train.textContent = last.train_loss === null ? "not finite" : decimal(last.train_loss);
      shown.val.textContent = val ? decimal(val[1]) : "–";
      shown.speed.textContent = grouped(last.tokens_per_s);
      bar.value = last.step / info.steps;
    }
    charts.forEach((each) => each.draw());
    drawEvaluations();
    texts.replaceChildren(...samples.slice(-20).reverse().map((sample) => el("article", { className: "sample" }, el("p", { className: "label", textContent: `step ${grouped(sample.step)} · ${sample.strategy}` }), el("p", { className: "text" }, el("b", { textContent: sample.prompt }), sample.text.slice(sample.prompt.length)))));
    if (!samples.length) texts.replaceChildren(el("p", { className: "note", textContent: "none yet: --sample-every N writes one every N steps" }));
  };
  const note = el("p", { className: "status", role: "status" });
  const close = server.watch(name, {
    onchange: (change) => {
      if (change.from_start) [rows, samples] = [[], []];
      rows.push(...change.rows);
      samples.push(...change.samples);
      info = change;
      note.textContent = change.error ?? "";
      draw();
    },
    onlost: (refused) => (note.textContent = refused ? "the server refuses to show this run; go back to the runs, or reload the page" : "the server does not answer; what it sent last is shown"),
  });
  const resized = () => charts.forEach((each) => each.draw());
  addEventListener("resize", resized);
  const node = el(
    "div",
    { className: "view watch" },
    el("dl", { className: "key" }, fact("state", shown.state), fact("step", shown.step), fact("training loss", shown.train), fact("validation loss", shown.val), fact("tokens per second", shown.speed), fact("time left", shown.left)),
    bar,
    note,
    el("div", { className: "sections" }, charts[0].node, el("div", { className: "pair" }, charts[1].node, charts[2].node), measured.node, written.node),
  );
  const stop = () => {
    close();
    removeEventListener("resize", resized);
  };
  return { node, stop };
}

// Means over consecutive points where there are more than a screen can show.
function thinned(points, most = 600) {
  const size = Math.ceil(points.length / most);
  if (size <= 1) return points;
  return Array.from({ length: Math.ceil(points.length / size) }, (_, i) => {
    const part = points.slice(i * size, (i + 1) * size);
    return [part.at(-1)[0], part.reduce((sum, p) => sum + p[1], 0) / part.length];
  });
}
