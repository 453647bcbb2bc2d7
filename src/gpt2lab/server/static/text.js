// A text as its tokens, the candidates of each, and a text that a model writes, with its branches.

import { barsPicture } from "./charts.js";
import { button, check, decimal, el, percent, plural, roving, slider, statusLine, visible } from "./dom.js";
import { saveButtons } from "./save.js";

const MOST_SURPRISE = 6; // nats: a probability of 1 in 400; the darkest color

// Write a token into running text. The space before a word is no part of what is colored: a line may break there.
export function spell(node, text) {
  const shown = text.replace(/\n/g, "↵\n");
  const space = /^ (?=.)/.exec(shown)?.[0] ?? "";
  node.replaceChildren(space, el("span", { className: "word", textContent: shown.slice(space.length) }));
}

export function colorBySurprise(node, nats) {
  node.style.setProperty("--surprise", `${Math.round(100 * Math.min(1, Math.max(0, nats) / MOST_SURPRISE))}%`);
}

export function surpriseLegend() {
  const steps = [0, 1, 2, 3, 4, 5, 6].map((nats) => {
    const box = el("span", { className: "swatch" });
    colorBySurprise(box, nats);
    return box;
  });
  return el("p", { className: "legend" }, "expected ", el("span", { className: "swatches", ariaHidden: "true" }, steps), " surprising", el("span", { className: "soft", textContent: "  color: −ln p, 0 to 6 nats" }));
}

export async function promptIds(engine, text, signal) {
  const { ids, texts } = await engine.tokenize(text, signal);
  const eot = engine.info.eot;
  if (eot === null && !ids.length) throw new Error("the text is empty and this tokenizer has no <|endoftext|> to start from; write something");
  return eot === null ? { ids, texts } : { ids: [eot, ...ids], texts: ["⟨start⟩", ...texts] };
}

// Rows of tokens with a number for each name, {id, text, values}; a bar shows the last, an outline the first of several.
// `choose(row)` makes the rows buttons.
export function barList(names, choose) {
  const last = names.length - 1;
  const list = el("ol", { className: ["bars single", "bars", "bars", "bars steps"][last] });
  const key = (n, kind) => [el("span", { className: `key ${kind}`, ariaHidden: "true" }), ` ${names[n]} `];
  const heads = last > 1 && el("p", { className: "heads", ariaHidden: "true" }, el("span"), el("span"), names.map((name) => el("span", { textContent: name })));
  const legend = el("p", { className: "bars-legend" }, last > 0 && key(0, "first"), key(last, "second"), heads && " · in %");
  if (choose) roving(list, "button", true);
  let listed = [];
  const show = (rows, chosen = null) => {
    listed = rows;
    const most = Math.max(1e-9, ...rows.flatMap(({ values }) => [values[0], values[last]]).filter(Number.isFinite).map(Math.abs));
    list.replaceChildren(
      ...rows.map((row, n) => {
        const bar = (kind, p) => {
          const node = el("span", { className: `bar ${kind}${p < 0 ? " against" : ""}` });
          node.style.width = `${Math.max(p ? 0.5 : 0, (100 * Math.abs(p)) / most)}%`;
          return node;
        };
        const { values } = row;
        const parts = [
          el("span", { className: "token", textContent: visible(row.text) }),
          el("span", { className: "track", ariaHidden: "true" }, last > 0 && bar("first", values[0]), bar("second", values[last])),
          values.map((p, n) => el("span", { className: n === last ? "number second" : "number", textContent: percent(p).replace(heads ? " %" : "", ""), title: `${names[n]}: ${p}` })),
        ];
        const words = `${visible(row.text)}: ${values.map((p, n) => `${names[n]} ${percent(p)}`).join(", ")}`;
        const kind = `row${row.id === chosen ? " chosen" : ""}${values[last] === 0 ? " cut" : ""}`;
        if (!choose) return el("li", { className: kind }, parts);
        const press = el("button", { type: "button", className: kind, ariaLabel: `${words}; continue with it`, tabIndex: n ? -1 : 0, onclick: () => choose(row) }, parts);
        return el("li", {}, press);
      }),
    );
  };
  const picture = (label) => barsPicture({ label, names, rows: listed, numbers: percent });
  return { node: el("div", { className: "bars-box" }, legend, heads, list), show, list, picture };
}

// The sliders of a decoding strategy.
export function strategyControls(info, { temperature = 1, top_k = 0, top_p = 0.9 } = {}) {
  const most = Math.min(200, info.vocab_size);
  const controls = {
    temperature: slider({ label: "Temperature", min: 0.1, max: 2, step: 0.05, value: temperature, hint: "below 1: likelier tokens become likelier" }),
    top_k: slider({ label: "Top-k", min: 0, max: most, step: 1, value: top_k, hint: "keep this many tokens; 0 keeps all" }),
    top_p: slider({ label: "Top-p", min: 0.05, max: 1, step: 0.01, value: top_p, hint: "keep the fewest tokens with this probability; 1 keeps all" }),
  };
  const greedy = check("Greedy: always the most probable token");
  greedy.box.addEventListener("change", () => Object.values(controls).forEach((control) => control.disable(greedy.box.checked)));
  const read = () => ({
    temperature: controls.temperature.read(),
    top_k: controls.top_k.read() || null,
    top_p: controls.top_p.read() < 1 ? controls.top_p.read() : null,
    greedy: greedy.box.checked,
  });
  const node = el("div", { className: "controls" }, Object.values(controls).map((control) => control.node), greedy.node);
  return { node, read: () => (greedy.box.checked ? { temperature: 1, top_k: null, top_p: null, greedy: true } : read()) };
}

export function lengthAndSeed(info) {
  const most = Math.min(1000, Math.max(info.n_ctx, 64));
  const length = slider({ label: "Length", min: 1, max: most, step: 1, value: Math.min(120, most), hint: "tokens at most" });
  const seed = slider({ label: "Seed", min: 0, max: 9999, step: 1, value: 1337, hint: "the same seed gives the same text" });
  const node = el("div", { className: "controls" }, length.node, seed.node);
  return { node, read: () => ({ max_tokens: length.read(), seed: seed.read() }) };
}

export function describeStrategy({ greedy, temperature, top_k, top_p }) {
  if (greedy) return "greedy";
  return [`temperature ${temperature}`, top_k && `top-k ${top_k}`, top_p && `top-p ${top_p}`].filter(Boolean).join(", ");
}

// What is left of each candidate after each cut. What the engine does not say is computed where the 20 candidates
// suffice: without a temperature, without cuts, or among the k most probable. Else it is NaN, shown as –.
export function afterEachCut(candidates, { temperature, top_k, top_p }) {
  const powers = candidates.map(({ p }) => p ** (1 / temperature));
  const few = top_k !== null && top_k <= candidates.length;
  const kth = few ? [...powers].sort((a, b) => b - a)[top_k - 1] : 0;
  const mass = powers.reduce((sum, power) => sum + (power >= kth ? power : 0), 0);
  return candidates.map((one, n) => {
    const after_temperature = one.after_temperature ?? (temperature === 1 ? one.p : top_k === null && top_p === null ? one.kept : NaN);
    const cut = few ? (powers[n] >= kth ? powers[n] / mass : 0) : NaN;
    const after_top_k = one.after_top_k ?? (top_p === null ? one.kept : top_k === null ? after_temperature : cut);
    return { ...one, after_temperature, after_top_k };
  });
}

// A text that an engine writes. `read` gives the settings; `ontoken()` hears of every token.
export function writer({ engine, title, read, ontoken = () => {} }) {
  const branches = [];
  let current = null;
  let pointed = null; // the number of the token whose candidates are shown, or null: the last one
  let pinned = null;
  let control = null; // of the generation that runs
  const status = statusLine();
  const prompt = el("span", { className: "prompt" });
  const output = el("span", { className: "written", role: "group", ariaLabel: "Written tokens: arrow keys move, Enter goes to the candidates" });
  const about = el("p", { className: "about" });
  const bars = barList(["model", "temp.", "top-k", "top-p"], (row) => branch(row));
  const branchList = el("ol", { className: "branches" });
  const branchBox = el("div", { className: "branch-box", hidden: true }, el("h3", { textContent: "Branches" }), branchList);
  roving(output, ".tok");

  const tokenNode = (token, n) => {
    const node = el("span", { className: "tok", tabIndex: n ? -1 : 0, role: "button" });
    spell(node, token.id === engine.info.eot ? "⟨end⟩" : token.text);
    node.dataset.n = n;
    node.ariaLabel = `${visible(token.text)}, probability ${percent(Math.exp(token.logprob))}`;
    colorBySurprise(node, -token.logprob);
    return node;
  };
  const showCandidates = () => {
    const tokens = current?.tokens ?? [];
    const n = pointed ?? pinned ?? tokens.length - 1;
    const token = tokens[n];
    for (const node of output.querySelectorAll(".shown")) node.classList.remove("shown");
    if (!token) {
      about.textContent = "Point at a token to see its candidates. Click it, then a candidate, to go on from there.";
      return bars.show([]);
    }
    output.children[n]?.classList.add("shown");
    about.replaceChildren(`Token ${n + 1}: `, el("b", { textContent: visible(token.text) }), `, surprise ${decimal(-token.logprob, 2)} nats`);
    bars.show(token.candidates.map(({ id, text, p, after_temperature, after_top_k, kept }) => ({ id, text, values: [p, after_temperature, after_top_k, kept] })), token.id);
  };
  const at = (event) => {
    const n = event.target.closest(".tok")?.dataset.n;
    return n === undefined ? null : Number(n);
  };
  const point = (event) => {
    if (at(event) === pointed && pointed !== null) return;
    pointed = at(event);
    showCandidates();
  };
  output.addEventListener("pointerover", point);
  output.addEventListener("focusin", point);
  output.addEventListener("pointerleave", () => ((pointed = null), showCandidates()));
  output.addEventListener("focusout", () => (pointed = null));
  output.addEventListener("click", (event) => {
    if (at(event) === null) return;
    pinned = pinned === at(event) ? null : at(event);
    mark();
  });
  output.addEventListener("keydown", (event) => {
    if (!["Enter", " "].includes(event.key) || at(event) === null) return;
    event.preventDefault(); // or it would press the candidate that is focused now
    pinned = at(event);
    mark();
    bars.list.querySelector("button")?.focus();
  });
  bars.list.addEventListener("keydown", (event) => event.key === "Escape" && output.children[pinned ?? 0]?.focus());
  const mark = () => [...output.children].forEach((node, n) => node.classList.toggle("pinned", n === pinned));

  const showBranches = () => {
    branchBox.hidden = branches.length < 2;
    branchList.replaceChildren(
      ...branches.map((each) => {
        const open = button(each.name, () => openBranch(each), { className: "branch", ariaCurrent: each === current ? "true" : null });
        return el("li", {}, open, el("span", { className: "soft", textContent: ` ${plural(each.tokens.length, "token")}` }));
      }),
    );
  };
  const display = (each) => {
    current = each;
    pinned = pointed = null;
    prompt.textContent = each.prompt.texts.filter((text) => text !== "⟨start⟩").join("");
    output.replaceChildren(...each.tokens.map(tokenNode));
    showBranches();
    showCandidates();
    ontoken();
  };
  const stop = () => control?.abort();
  const openBranch = (each) => {
    stop();
    status.say("");
    display(each);
  };

  // Write a new branch, which `make` gives: its prompt, the tokens it begins with and its settings.
  async function write(make) {
    stop();
    const own = (control = new AbortController());
    node.classList.add("running");
    status.say("writing …");
    try {
      const each = await make(own.signal);
      own.signal.throwIfAborted();
      branches.push(each);
      display(each);
      await go(each, own.signal);
    } catch (error) {
      if (control === own) status.say(own.signal.aborted ? "stopped" : error.message, !own.signal.aborted);
    } finally {
      if (control === own) {
        control = null;
        node.classList.remove("running");
      }
      showBranches();
      ontoken();
    }
  }
  async function go(each, signal) {
    const before = each.tokens.length;
    const begin = performance.now();
    const left = each.settings.max_tokens - before;
    const ids = [...each.prompt.ids, ...each.tokens.map((token) => token.id)];
    if (left > 0 && each.tokens.at(-1)?.id !== (engine.info.eot ?? -1)) {
      for await (const token of engine.generate({ off: [], ...each.settings, ids, max_tokens: left }, signal)) {
        if (signal.aborted) break;
        each.tokens.push({ ...token, candidates: afterEachCut(token.candidates, each.settings) });
        if (current !== each) continue;
        output.append(tokenNode(token, each.tokens.length - 1));
        if (pointed === null && pinned === null) showCandidates();
        ontoken();
      }
    }
    const made = plural(each.tokens.length - before, "token");
    const seconds = decimal((performance.now() - begin) / 1000, 1);
    if (current === each) status.say(signal.aborted ? `stopped after ${made}` : `${made} in ${seconds} s · ${describeStrategy(each.settings)}`);
  }
  const run = (text) =>
    write(async (signal) => ({ name: `${branches.length + 1}: from the prompt`, settings: read(), prompt: await promptIds(engine, text, signal), tokens: [] }));
  const branch = (row) => {
    const n = pinned ?? pointed ?? current.tokens.length - 1;
    const old = current.tokens[n];
    const token = { ...old, id: row.id, text: row.text, logprob: Math.log(row.values[0]) };
    const settings = { ...read(), max_tokens: Math.max(read().max_tokens, n + 2) };
    const name = `${branches.length + 1}: ${visible(row.text)} instead of ${visible(old.text)} at token ${n + 1}`;
    return write(async () => ({ name, settings, prompt: current.prompt, tokens: [...current.tokens.slice(0, n), token] }));
  };
  const text = el("p", { className: "text" }, prompt, output);
  const panel = el("aside", { className: "candidates", ariaLabel: `Candidates${title ? ` of ${title}` : ""}` }, el("header", {}, el("h3", { textContent: "Candidates" }), saveButtons(`candidates of ${title ?? engine.info.name}`, () => `${title ?? engine.info.name}-candidates`, () => bars.picture(about.textContent), null)), about, bars.node);
  const node = el("div", { className: "writer" }, el("div", { className: "paper" }, title && el("h3", { className: "writer-name", textContent: title }), status.node, text), panel, branchBox);
  showCandidates();
  const saved = () => branches.map(({ name, prompt: p, tokens, settings }) => ({ name, settings, prompt: p, tokens }));
  const pictured = () => {
    const { prompt: p, tokens, settings } = current ?? { prompt: { texts: [] }, tokens: [], settings: {} };
    const given = p.texts.filter((token) => token !== "⟨start⟩").map((token) => ({ text: token }));
    const made = tokens.map(({ id, text: token, logprob }, n) => ({ text: id === engine.info.eot ? "⟨end⟩" : token, strength: Math.min(1, -logprob / MOST_SURPRISE), parts: output.children[n]?.classList.contains("parts") }));
    return { title: title ?? engine.info.name, note: describeStrategy(settings), tokens: [...given, ...made] };
  };
  return { node, run, stop, status, saved, pictured, output, tokens: () => current?.tokens ?? [], running: () => control !== null };
}
