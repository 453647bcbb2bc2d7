// The frame of every page: the head with its links, the theme, and the view that the address names.
//   #/                     the runs (server only)
//   #/run/NAME/VIEW        write, inside, patch, watch
//   #/compare/NAME/NAME    two runs
//   #/VIEW                 in a single file, which holds one model

import { button, el, short } from "./dom.js";

const THEMES = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };

// `start({ server, views })` for a server with its runs; `start({ engine, views })` for one model.
export function start({ server = null, engine = null, views }) {
  const nav = el("nav", { className: "views", ariaLabel: "Views" });
  const title = el("span", { className: "run-name" });
  const home = el("a", { className: "brand", href: "#/", textContent: "gpt2lab" });
  const page = el("main", { id: "page", tabIndex: -1 });
  const remembered = {};
  const known = {}; // what each run can, once it has been loaded
  let current = null;
  let asked = 0;
  document.body.replaceChildren(el("a", { className: "skip", href: "#page", textContent: "Skip to the page", onclick: (event) => (event.preventDefault(), page.focus()) }), el("header", { className: "top" }, home, title, nav, themeButton()), page);

  const place = () => {
    const parts = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decoded);
    if (!server) return { view: parts[0] ?? "write", names: [] };
    if (parts[0] === "compare") return { view: "compare", names: parts.slice(1) };
    if (parts[0] === "run") return { view: parts[2] ?? "write", names: [parts[1]] };
    return { view: "runs", names: [] };
  };
  // The links are changed in place where only the view changes: one that is focused stays so.
  const link = (entries) => {
    const same = entries.length === nav.children.length && entries.every(({ href }, n) => nav.children[n].getAttribute("href") === href);
    if (!same) nav.replaceChildren(...entries.map(({ href, title: text }) => el("a", { href, textContent: text })));
    entries.forEach(({ here }, n) => (nav.children[n].ariaCurrent = here ? "page" : null));
  };
  const can = (view, info) => (view.needs === "patch" ? info.can.patch : view.needs === "engine" || (view.name === "watch" && info.can.watch));
  const show = async () => {
    const own = ++asked;
    current?.stop();
    current = null;
    const waiting = (text, wrong) => page.replaceChildren(el("p", { className: `waiting${wrong ? " wrong" : ""}`, role: "status", textContent: text }));
    try {
      const { view: name, names } = place();
      const view = views.find((each) => each.name === name) ?? views[0];
      const run = names[0];
      title.textContent = view.name === "compare" || !run ? (engine?.info.name ?? "") : run;
      const links = (info) => {
        const path = (each) => (server ? `#/run/${encodeURIComponent(run)}/${each.name}` : `#/${each.name}`);
        const shown = (info ? views.filter((each) => can(each, info)) : []).map((each) => ({ href: path(each), title: each.title, here: each === view }));
        link(server ? [{ href: "#/", title: "Runs", here: view.name === "runs" }, ...shown] : shown);
      };
      document.title = [run ?? engine?.info.name, view.title, "gpt2lab"].filter(Boolean).join(" · ");
      page.ariaLabel = view.title;
      const context = { server, names, name: run, remember: (remembered[`${run}/${view.name}`] ??= {}) };
      if (view.needs === "server") {
        if (view.name === "watch") links({ can: { watch: true, patch: true } });
        else {
          links(null);
          waiting("reading the runs …");
        }
        context.runs = view.name === "watch" ? null : await server.runs();
      } else {
        if (server) {
          links(known[run] ?? { can: { watch: false, patch: false } });
          waiting(`loading ${run} …`);
        }
        context.engine = engine ?? (await server.engine(run));
        links((known[run] = context.engine.info));
        title.title = `${short(context.engine.info.parameters)} parameters`;
      }
      if (own !== asked) return;
      current = view.make(context);
      page.replaceChildren(current.node);
    } catch (error) {
      if (own === asked) waiting(error.message, true);
    }
  };
  addEventListener("hashchange", async () => {
    scrollTo(0, 0);
    page.focus({ preventScroll: true }); // where a screen reader goes on
    await show();
  });
  return show();
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a stray % in an address that somebody typed
  }
}

function themeButton() {
  const kept = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // a file:// page may have no storage
    }
  };
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    press.textContent = THEMES[theme];
    try {
      localStorage.setItem("theme", theme);
    } catch {}
    document.dispatchEvent(new Event("themechange"));
  };
  const names = Object.keys(THEMES);
  const press = button("", () => apply(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]), { className: "theme" });
  apply(names.includes(kept()) ? kept() : "auto");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
  return press;
}
