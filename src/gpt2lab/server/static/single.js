// The page of `gpt2lab export-html`: one model, in this file. In the console, `engine` is what the page uses.

import { localEngine } from "./engine-local.js";

const engine = (globalThis.engine = localEngine(JSON.parse(document.getElementById("model").textContent)));
const add = (tag, properties) => document.body.appendChild(Object.assign(document.createElement(tag), properties));

add("h1", { textContent: engine.info.name });
const prompt = add("textarea", { rows: 3, ariaLabel: "Prompt" });
const text = document.createElement("p");
let running = null;
add("button", {
  textContent: "Write",
  async onclick() {
    running?.abort();
    const { signal } = (running = new AbortController());
    const { ids } = await engine.tokenize(prompt.value);
    const start = engine.info.eot === null ? ids : [engine.info.eot, ...ids];
    text.textContent = prompt.value;
    for await (const token of engine.generate({ ids: start, max_tokens: 200, top_p: 0.9, seed: Date.now() }, signal)) text.append(token.text);
  },
});
document.body.append(text);
