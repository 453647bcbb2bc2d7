// The page of `gpt2lab export-html`: one model, in this file. In the console, `engine` is what the page uses.

import { localEngine } from "./engine-local.js";
import { insideView } from "./inside.js";
import { start } from "./main.js";
import { patchView } from "./patch.js";
import { writeView } from "./write.js";

const engine = (globalThis.engine = localEngine(JSON.parse(document.getElementById("model").textContent)));
start({ engine, views: [writeView, insideView, patchView] });
