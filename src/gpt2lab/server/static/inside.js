// Look inside: attention, logit lens, losses, the residual stream; heads and layers switched off, before and after.

import { attentionArcs, attentionMatrix, barChart, clipped, heatGrid, picture, svg, weightPaths, writeAt } from "./charts.js";
import { button, card, debounce, decimal, el, field, percent, plural, roving, statusLine, visible } from "./dom.js";
import { saveButtons } from "./save.js";
import { barList, colorBySurprise, promptIds, spell, surpriseLegend } from "./text.js";

export const insideView = { name: "inside", title: "Look inside", needs: "engine", make: makeInside };

const MOST_TOKENS = 128;

function makeInside({ engine, remember }) {
  const { n_layer: L, n_head: H, n_ctx, name, most_inspected = n_ctx } = engine.info;
  const off = new Set();
  const state = { seen: null, plain: null, layer: 0, head: 0, at: 0 };
  const text = el("textarea", { rows: 3, spellcheck: false, value: remember.text ?? "" });
  const status = statusLine();
  const body = el("div", { className: "sections" });
  const file = (what) => () => `${name}-${what}`;
  const parts = [strip(), heads(), switched(), oneHead(), lens(), residual()];
  const nodes = parts.map((part) => part.node);
  body.append(nodes[0], el("div", { className: "heads-and-change" }, nodes[1], nodes[2]), ...nodes.slice(3));

  let control = new AbortController(); // of the question that runs; the next one ends it
  const next = () => {
    control.abort();
    return (control = new AbortController()).signal;
  };
  async function look() {
    const signal = next();
    status.say("looking inside …");
    try {
      const prompt = await promptIds(engine, text.value, signal);
      const most = Math.min(MOST_TOKENS, most_inspected);
      const ids = prompt.ids.slice(0, most);
      const seen = await engine.inspect({ ids, off: [...off] }, signal);
      const same = state.plain && state.plain.ids.join() === ids.join();
      const plain = off.size ? (same ? state.plain : { ...(await engine.inspect({ ids, off: [] }, signal)), ids }) : { ...seen, ids };
      if (signal.aborted) return;
      const texts = prompt.texts.slice(0, most);
      Object.assign(state, { seen: { ...seen, texts, ids }, plain: { ...plain, texts } });
      if (!same) state.at = ids.length - 1;
      const cut = prompt.ids.length > most ? ` · the first ${most} of ${prompt.ids.length}` : "";
      status.say(`${plural(ids.length, "token")}${cut} · mean loss ${decimal(mean(seen.losses))} nats${off.size ? ` (${decimal(mean(plain.losses))} with everything on)` : ""}`);
      draw();
    } catch (error) {
      if (!signal.aborted) status.say(error.message, true);
    }
  }
  // `draw` shows new data; `follow` only what depends on the chosen position and head, so that the focus stays.
  const draw = () => {
    if (state.seen) parts.forEach((part) => part.draw?.());
    follow();
  };
  const follow = () => state.seen && parts.forEach((part) => part.move?.());
  const choose = (position) => {
    state.at = position;
    follow();
  };
  const later = debounce(500, look);
  text.addEventListener("input", () => {
    remember.text = text.value;
    later();
  });
  const weight = (l, h) => {
    const { data, shape } = state.seen.attention;
    const T = shape[3];
    return (q, k) => data[((l * H + h) * T + q) * T + k];
  };

  // The text, colored by the loss of each token, and the losses as bars.
  function strip() {
    const flow = el("p", { className: "text flow" });
    const chart = el("div", { className: "scroller" });
    const readout = el("p", { className: "readout" });
    let image = null;
    roving(flow, ".tok");
    const { node, head } = card("Loss of each token", "How surprised the model is by each token of your text: −ln p, in nats. Click a token to follow it through the other pictures.", surpriseLegend(), flow, readout, chart);
    head.append(saveButtons("losses", file("losses"), () => image, () => ({ tokens: state.seen.texts, losses: state.seen.losses, off: [...off], losses_with_everything_on: state.plain.losses })));
    const draw = () => {
      const { texts, losses } = state.seen;
      flow.replaceChildren(
        ...texts.map((token, t) => {
          const part = el("button", { type: "button", className: "tok", onclick: () => choose(t), title: t ? `${decimal(losses[t - 1])} nats` : "the first token is given" });
          spell(part, token);
          if (t) colorBySurprise(part, losses[t - 1]);
          return part;
        }),
      );
      const series = [{ values: [NaN, ...losses], kind: off.size ? "bar-after" : "bar-before" }];
      if (off.size) series.unshift({ values: [NaN, ...state.plain.losses], kind: "bar-ghost" });
      image = barChart({ label: "Loss of each token in nats", texts, series, width: Math.max(300, chart.clientWidth || 900), unit: "nats", onpick: choose });
      chart.replaceChildren(image);
    };
    const move = () => {
      const [t, { texts, losses }] = [state.at, state.seen];
      [...flow.children].forEach((part, n) => {
        part.classList.toggle("pinned", n === t);
        part.ariaPressed = String(n === t);
        part.tabIndex = n === t ? 0 : -1;
      });
      readout.textContent = t ? `${visible(texts[t])} at position ${t}: loss ${decimal(losses[t - 1], 4)} nats, probability ${percent(Math.exp(-losses[t - 1]))}` : "The first token is given; it has no loss.";
    };
    return { node, draw, move };
  }

  // All heads as small matrices, each with its switch; one of them is shown large.
  function heads() {
    const layers = [];
    const toggle = (part, label, name = label) => {
      const press = button(label, () => {
        off.has(part) ? off.delete(part) : off.add(part);
        press.ariaPressed = String(off.has(part));
        all.disabled = !off.size;
        look();
      }, { className: "switch", ariaPressed: "false", ariaLabel: name, title: `switch off ${part}` });
      press.dataset.part = part;
      return press;
    };
    const all = button("Everything on", () => {
      off.clear();
      node.querySelectorAll(".switch").forEach((press) => (press.ariaPressed = "false"));
      all.disabled = true;
      look();
    }, { disabled: true });
    const thumbs = [];
    for (let l = 0; l < L; l++) {
      const row = el("div", { className: H > 6 ? "thumbs many" : "thumbs" });
      for (let h = 0; h < H; h++) {
        const canvas = el("canvas", { width: 8, height: 8 });
        const open = el("button", { type: "button", className: "thumb", ariaLabel: `Show head ${h} of layer ${l}`, onclick: () => (Object.assign(state, { layer: l, head: h }), follow()) }, canvas);
        thumbs.push({ canvas, open, l, h });
        row.append(el("div", { className: "head-box" }, open, toggle(`head:${l}.${h}`, H > 6 ? String(h) : `head ${h}`, `head ${h}`)));
      }
      layers.push(el("div", { className: "layer", role: "group", ariaLabel: `Layer ${l}` }, el("div", { className: "layer-name" }, el("b", { textContent: `Layer ${l}` }), toggle(`layer:${l}`, "whole layer"), toggle(`attention:${l}`, "attention"), toggle(`mlp:${l}`, "feed-forward")), row));
    }
    const { node, head } = card("Attention of every head", "Rows are tokens that read, columns what they read; darker is more. Click a head to see it large. The names below are switches: a part that is off adds nothing to the residual stream.", ...layers);
    const sheet = () => {
      const T = state.seen.texts.length;
      const [cell, gap] = [Math.max(2, 120 / T), 14];
      const side = T * cell;
      return picture(60 + H * (side + gap), L * (side + gap) + 26, `Attention of every head of ${name}`, Array.from({ length: L }, (_, l) => [writeAt(2, 24 + l * (side + gap) + side / 2, `layer ${l}`, { class: "head" }), Array.from({ length: H }, (_, h) => [l === 0 && writeAt(60 + h * (side + gap), 14, `head ${h}`, { class: "head" }), svg("rect", { x: 60 + h * (side + gap), y: 22 + l * (side + gap), width: side, height: side, class: "field-ground" }), weightPaths(weight(l, h), T, cell, 60 + h * (side + gap), 22 + l * (side + gap))])]));
    };
    head.append(el("span", { className: "saves" }, all, saveButtons("attention of every head", file("attention"), sheet, () => ({ tokens: state.seen.texts, off: [...off], shape: state.seen.attention.shape, attention: state.seen.attention.data }))));
    const paint = () => {
      const T = state.seen.texts.length;
      const [more, less] = ["--heat-rgb", "--against-rgb"].map((name) => getComputedStyle(node).getPropertyValue(name).split(",").map(Number));
      for (const { canvas, l, h } of thumbs) {
        canvas.width = canvas.height = T;
        const image = new ImageData(T, T);
        const value = weight(l, h);
        for (let q = 0; q < T; q++) for (let k = 0; k < T; k++) image.data.set([...(value(q, k) < 0 ? less : more), 255 * Math.sqrt(Math.abs(value(q, k)))], 4 * (q * T + k));
        canvas.getContext("2d").putImageData(image, 0, 0);
      }
    };
    const move = () => thumbs.forEach(({ open, l, h }) => (open.ariaPressed = String(l === state.layer && h === state.head)));
    return { node, draw: paint, move };
  }

  // One head: the matrix and the arcs.
  function oneHead() {
    const matrix = el("div", { className: "scroller" });
    const arcs = el("div", { className: "scroller" });
    const bars = barList(["attention"]);
    const readout = el("p", { className: "readout", ariaLive: "polite" });
    const { node, head } = card("One head", "", arcs, el("div", { className: "two-pictures" }, matrix, el("div", { className: "reads" }, readout, bars.node)));
    const title = head.firstChild;
    let images = [];
    const numbers = () => {
      const [T, value] = [state.seen.texts.length, weight(state.layer, state.head)];
      return { layer: state.layer, head: state.head, off: [...off], tokens: state.seen.texts, attention: Array.from({ length: T }, (_, q) => Array.from({ length: T }, (_, k) => Number(value(q, k).toPrecision(6)))) };
    };
    const which = () => `${name}-layer-${state.layer}-head-${state.head}`;
    head.append(el("span", { className: "saves" }, "matrix ", saveButtons("matrix of the head", () => `${which()}-matrix`, () => images[1], numbers), " arcs ", saveButtons("arcs of the head", () => `${which()}-arcs`, () => images[0], null)));
    const move = () => {
      const { texts } = state.seen;
      const [q, value] = [state.at, weight(state.layer, state.head)];
      title.textContent = `Layer ${state.layer}, head ${state.head}`;
      const options = { texts, weights: value, chosen: q };
      images = [attentionArcs({ ...options, label: `Arcs of attention of layer ${state.layer}, head ${state.head}` }), attentionMatrix({ ...options, label: `Attention matrix of layer ${state.layer}, head ${state.head}`, onpick: choose })];
      arcs.replaceChildren(images[0]);
      matrix.replaceChildren(images[1]);
      const read = texts.map((token, k) => ({ id: k, text: token, values: [value(q, k)] })).filter(({ values: [weight] }) => weight !== 0);
      const negative = read.some(({ values: [weight] }) => weight < 0) ? " (orange: negative, it is subtracted)" : "";
      readout.replaceChildren("What ", el("b", { textContent: visible(texts[q]) }), ` at position ${q} reads${negative}:`);
      bars.show(read.sort((x, y) => Math.abs(y.values[0]) - Math.abs(x.values[0])).slice(0, 12));
    };
    return { node, move };
  }

  // The next token, with everything on and as switched.
  function switched() {
    const bars = barList(["everything on", "as switched"]);
    const change = el("p", { className: "readout", role: "status" });
    const { node, head } = card("What the switches change", "The token after your text (–: not among the 20 most probable), and the loss of the text itself.", change, bars.node);
    const highest = ({ values }) => Math.max(...values.map((p) => p || 0));
    const rows = () => {
      const found = new Map(state.plain.next.map(({ id, text, p }) => [id, { id, text, values: [p, NaN] }]));
      for (const { id, text, p } of state.seen.next) found.set(id, { id, text, values: [found.get(id)?.values[0] ?? NaN, p] });
      return [...found.values()].sort((x, y) => highest(y) - highest(x)).slice(0, 10);
    };
    head.append(saveButtons("what the switches change", file("switched-off"), () => bars.picture("What the switches change"), () => ({ off: [...off], tokens: state.seen.texts, next: state.seen.next, next_with_everything_on: state.plain.next, losses: state.seen.losses, losses_with_everything_on: state.plain.losses })));
    const draw = () => {
      const [before, after] = [mean(state.plain.losses), mean(state.seen.losses)];
      const more = after - before;
      change.textContent = off.size ? `Off: ${[...off].join(", ")}. Mean loss ${decimal(before, 4)} → ${decimal(after, 4)} nats (${more >= 0 ? "+" : ""}${decimal(more, 4)}).` : `Everything is on. Mean loss ${decimal(before, 4)} nats. Switch a head or a layer off above.`;
      bars.show(rows());
    };
    return { node, draw };
  }

  // What each layer would say.
  function lens() {
    const box = el("div");
    const { node, head } = card("What each layer would say", "The residual stream after each layer, read out as if it were the last (logit lens): the most probable next token, darker for more probable. The bottom row is the model itself.", box);
    let grid = null;
    head.append(saveButtons("logit lens", file("logit-lens"), () => grid.svg(), () => ({ tokens: state.seen.texts, off: [...off], lens: state.seen.lens })));
    const draw = () => {
      const { texts, lens: table } = state.seen;
      grid = heatGrid({
        row: grid?.at()[0],
        label: "Logit lens, layer by position",
        rows: table.map((_, l) => (l ? `layer ${l - 1}` : "embedding")),
        columns: texts,
        strength: (i, j) => table[i][j].top[0].p,
        text: (i, j) => clipped(table[i][j].top[0].text, 8),
        describe: (i, j) => [`${i ? `After layer ${i - 1}` : "Embedding"}, after `, el("b", { textContent: visible(texts[j]) }), `: ${table[i][j].top.map(({ text: token, p }) => `${visible(token)} ${percent(p)}`).join(", ")}`],
        onpick: (_, j) => choose(j),
        width: 64,
      });
      box.replaceChildren(grid.node);
    };
    return { node, draw, move: () => grid.show(grid.at()[0], state.at) };
  }

  // How large the stream is.
  function residual() {
    const box = el("div");
    const { node, head } = card("How large the residual stream is", "Root mean square over the width, at the embedding and after each layer.", box);
    let grid = null;
    head.append(saveButtons("residual stream", file("residual"), () => grid.svg(), () => ({ tokens: state.seen.texts, off: [...off], rms: state.seen.residual })));
    const draw = () => {
      const { texts, residual: rms } = state.seen;
      const most = Math.max(...rms.flat());
      grid = heatGrid({
        row: grid?.at()[0],
        label: "Root mean square of the residual stream, layer by position",
        rows: rms.map((_, l) => (l ? `layer ${l - 1}` : "embedding")),
        columns: texts,
        strength: (i, j) => rms[i][j] / most,
        text: (i, j) => Number(rms[i][j].toPrecision(3)).toString(),
        describe: (i, j) => [`${i ? `After layer ${i - 1}` : "Embedding"} at `, el("b", { textContent: visible(texts[j]) }), `: ${decimal(rms[i][j], 4)}`],
        onpick: (_, j) => choose(j),
        width: 64,
      });
      box.replaceChildren(grid.node);
    };
    return { node, draw, move: () => grid.show(grid.at()[0], state.at) };
  }

  const node = el("div", { className: "view inside" }, field("Text to look at", text, "changes are shown as you type"), status.node, body);
  document.addEventListener("themechange", draw);
  const stop = () => {
    control.abort();
    document.removeEventListener("themechange", draw);
  };
  return { node, stop, started: begin() };

  // At first the text is one of the model's own, which shows it at its best.
  async function begin() {
    if (remember.text !== undefined) return look();
    const signal = next();
    status.say("writing a text to look at …");
    try {
      const { ids } = await promptIds(engine, "One day", signal);
      const written = [];
      for await (const token of engine.generate({ ids, max_tokens: 22, temperature: 0.8, top_k: null, top_p: 0.9, greedy: false, seed: 7, off: [] }, signal)) {
        if (token.id !== engine.info.eot) written.push(token);
      }
      if (signal.aborted) return;
      const open = written.findLastIndex((token) => token.candidates[0].p < 0.5); // where it could have gone on otherwise
      if (!text.value) text.value = `One day${written.slice(0, open < 4 ? written.length : open).map((token) => token.text).join("")}`;
    } catch (error) {
      return signal.aborted || status.say(error.message, true);
    }
    await look();
  }
}

function mean(values) {
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN;
}
