// `gpt2lab play`: every view, over the server.

import { compareView } from "./compare.js";
import { connect } from "./engine-server.js";
import { insideView } from "./inside.js";
import { start } from "./main.js";
import { patchView } from "./patch.js";
import { runsView } from "./runs.js";
import { watchView } from "./watch.js";
import { writeView } from "./write.js";

start({ server: connect(), views: [runsView, writeView, insideView, patchView, watchView, compareView] });
