// The engine behind the pages of `gpt2lab play`: the model runs in the server.

export function connect() {
  const engines = new Map();
  const api = (name, what) => `/api/runs/${encodeURIComponent(name)}/${what}`;
  return {
    runs: async () => (await answer(await fetch("/api/runs"))).runs,
    engine(name) {
      if (!engines.has(name)) {
        const found = answer(fetch(api(name, "info"))).then((info) => serverEngine(info, (what) => api(name, what)));
        found.catch(() => engines.delete(name));
        engines.set(name, found);
      }
      return engines.get(name);
    },
    // Calls `onchange` with each event; returns what ends it. EventSource connects again by itself, unless it is refused.
    watch(name, { onchange, onlost }) {
      const source = new EventSource(api(name, "watch"));
      source.onmessage = (event) => onchange(JSON.parse(event.data));
      source.onerror = () => onlost(source.readyState === EventSource.CLOSED);
      return () => source.close();
    },
  };
}

async function answer(response) {
  const found = await response;
  const body = await found.json().catch(() => ({}));
  if (!found.ok) throw new Error(body.error?.message ?? `the server answers ${found.status}`);
  return body;
}

function serverEngine(info, path) {
  const post = (what, body, signal) => fetch(path(what), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
  return {
    info,
    tokenize: async (text, signal) => answer(post("tokenize", { text }, signal)),
    patch: async (prompts, signal) => answer(post("patch", prompts, signal)),
    async inspect({ ids, off }, signal) {
      const found = await answer(post("inspect", { ids, off }, signal));
      const bytes = Uint8Array.from(atob(found.attention.data), (c) => c.charCodeAt(0));
      return { ...found, attention: { shape: found.attention.shape, data: new Float32Array(bytes.buffer) } };
    },
    async *generate(request, signal) {
      const response = await post("generate", request, signal);
      if (!response.ok) await answer(response);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) throw new Error("the text ended early; the server has stopped or the connection is lost");
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const found = JSON.parse(event.replace(/^data: /, ""));
          if (found.error) throw new Error(found.error.message);
          if (found.end) return;
          yield found;
        }
      }
    },
  };
}
