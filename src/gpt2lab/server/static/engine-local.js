// The engine behind the page of `gpt2lab export-html`: tokenizer and model in this file, without a server.
//
//   text -> ids          byte-level BPE: split by the pattern, then merge within each word by rank
//   ids -> logits        x_0 = wte + wpe;  x += attention(norm(x));  x += feed_forward(norm(x));  norm(x) wte^T
//   logits -> next id    temperature, then top-k, then top-p, drawn with a seed
//
// Shapes: a matrix of T rows is one Float32Array, row by row. T tokens, L layers, H heads of D numbers, K key and value
// heads, width C, vocabulary V. Weights stay as they are stored: 8-bit rows, each with a scale.

const CANDIDATES = 20;
const LENS = 5;
const PROMPT = 32; // tokens of a prompt that are read at once, then the page may draw
const FEW = 64; // so many largest numbers are found without sorting all

export function localEngine(model) {
  const { config, name, parameters } = model;
  const { n_layer: L, n_head: H, n_embd: C, n_ctx, vocab_size: V } = config;
  const tokenizer = makeTokenizer(model.tokenizer);
  const network = makeNetwork(config, readWeights(model));
  const { eot } = model.tokenizer;
  const token = (id, p) => ({ id, text: tokenizer.read(id), p });

  function checked(ids, longest = Infinity) {
    if (!ids.length) throw new Error("there are no tokens; give at least one");
    if (ids.length > longest) throw new Error(`${ids.length} tokens exceed the model's context of ${longest}; shorten the text`);
    const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < V));
    if (wrong !== undefined) throw new Error(`${wrong} is not an id of the model; ids are 0 to ${V - 1}`);
    return ids;
  }

  async function* generate({ ids, max_tokens, temperature = 1, top_k = null, top_p = null, greedy = false, seed = 0, off = [] }, signal) {
    let window = checked([...ids]).slice(network.endless ? 0 : -n_ctx);
    const [cache, parts, random, breath] = [network.newCache(), switchedOff(off, L, H), randomNumbers(seed), breathing()];
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    for (const id of ids) decoder.decode(tokenizer.bytes(id), { stream: true }); // it may end within a character
    const chunk = Math.min(PROMPT, n_ctx);
    let unread = window;
    for (let n = 0; n < max_tokens; n++) {
      let x;
      for (let start = 0; start < unread.length; start += chunk) {
        await breath();
        signal?.throwIfAborted();
        x = network.run(network.embed(unread.slice(start, start + chunk), cache.length), cache, parts);
      }
      const logits = network.logits(x.subarray(-C));
      const p = softmax(logits);
      const after = distributions(logits, { temperature, top_k, top_p, greedy });
      const id = draw(after.kept, random());
      const best = largest(logits, CANDIDATES);
      const candidates = (best.includes(id) ? best : [...best.slice(0, -1), id]).map((one) => ({ ...token(one, p[one]), after_temperature: after.temperature[one], after_top_k: after.top_k[one], kept: after.kept[one] }));
      yield { id, text: id === eot ? tokenizer.read(id) : decoder.decode(tokenizer.bytes(id), { stream: true }), logprob: Math.log(p[id]), candidates };
      if (id === eot) return;
      unread = [id];
      if (network.endless) continue;
      window.push(id);
      if (cache.length === n_ctx) {
        window = unread = window.slice(-Math.ceil(n_ctx / 2)); // the context is full: the older half is dropped
        cache.length = 0;
      }
    }
  }

  async function inspect({ ids, off = [] }, signal) {
    const T = checked(ids, n_ctx).length;
    const breath = breathing();
    const streams = [network.embed(ids, 0)];
    const attention = new Float32Array(L * H * T * T);
    network.run(streams[0], network.newCache(), switchedOff(off, L, H), 0, { streams, attention });
    const lens = [];
    let losses, next;
    for (const x of streams) {
      losses = [];
      lens.push([]);
      for (let t = 0; t < T; t++) {
        await breath();
        signal?.throwIfAborted();
        const logits = network.logits(x.subarray(t * C, (t + 1) * C));
        const p = (next = softmax(logits));
        lens.at(-1).push({ top: largest(logits, LENS).map((id) => token(id, p[id])) });
        if (t < T - 1) losses.push(-Math.log(p[ids[t + 1]]));
      }
    }
    const rms = (x, t) => Math.sqrt(dot(x, t * C, x, t * C, C) / C);
    return {
      texts: ids.map(tokenizer.read),
      losses,
      residual: streams.map((x) => ids.map((_, t) => rms(x, t))),
      lens,
      attention: { shape: [L, H, T, T], data: attention },
      next: largest(next, CANDIDATES).map((id) => token(id, next[id])),
    };
  }

  // The corrupted prompt is run again from each place on: what comes before it, in position or layer, is in the cache.
  async function patch({ clean, corrupted, answer, wrong }, signal) {
    checked([answer, wrong]);
    const T = checked(clean, n_ctx).length;
    if (checked(corrupted).length !== T) throw new Error(`the clean prompt has ${T} tokens and the corrupted one ${corrupted.length}; give prompts of one length`);
    const breath = breathing();
    const off = switchedOff([], L, H);
    const difference = (x) => {
      const logits = network.logits(x.subarray(-C));
      return logits[answer] - logits[wrong];
    };
    const runs = [clean, corrupted].map((ids) => {
      const [cache, streams] = [network.newCache(), [network.embed(ids, 0)]];
      return { cache, streams, d: difference(network.run(streams[0], cache, off, 0, { streams })) };
    });
    const [from, into] = runs;
    if (from.d === into.d) throw new Error("both prompts give the same logit difference, so there is nothing to restore; change a prompt or the tokens");
    const effect = [];
    for (let l = 0; l < L; l++) {
      const cache = network.copyCache(into.cache);
      const row = Array(T).fill(0);
      for (let t = T - 1; t >= 0; t--) { // backwards: what a run writes to the cache, the next ones do not read
        await breath();
        signal?.throwIfAborted();
        cache.length = t;
        const x = into.streams[l + 1].slice(t * C);
        const restored = from.streams[l + 1].subarray(t * C, (t + 1) * C);
        if (restored.every((value, i) => value === x[i])) continue;
        x.set(restored);
        row[t] = (difference(network.run(x, cache, off, l + 1)) - into.d) / (from.d - into.d);
      }
      effect.push(row);
    }
    return { positions: clean.map(tokenizer.read), effect };
  }

  const info = { name, n_layer: L, n_head: H, n_kv_head: config.n_kv_head, n_embd: C, n_ctx, vocab_size: V, parameters, eot };
  return {
    info: { ...info, can: { watch: false, compare: false, patch: true } },
    tokenize: async (text) => {
      const ids = tokenizer.encode(text);
      return { ids, texts: ids.map(tokenizer.read) };
    },
    generate,
    inspect,
    patch,
  };
}

// Returns a function that lets the page draw and answer the mouse, at most every 12 ms: each wait costs time.
function breathing() {
  const { port1, port2 } = new MessageChannel();
  let last = performance.now();
  return async () => {
    if (performance.now() - last < 12) return;
    await new Promise((resolve) => {
      port1.onmessage = resolve;
      port2.postMessage(null);
    });
    last = performance.now();
  };
}

// Tokenizer -----------------------------------------------------------------------------------------------------------

// `tokens` are the bytes of each id as characters U+0000 to U+00FF, `merges` pairs of ids by rank, one after another.
function makeTokenizer({ tokens, merges, special, pattern }) {
  const V = tokens.length;
  const splitting = new RegExp(pattern, "gu");
  const isSpecial = new Set(special);
  const idOf = new Map();
  tokens.forEach((token, id) => isSpecial.has(id) || idOf.set(token, id));
  const ranks = new Map();
  const made = [];
  for (let rank = 0; rank < merges.length / 2; rank++) {
    const [left, right] = [merges[2 * rank], merges[2 * rank + 1]];
    made.push(idOf.get(tokens[left] + tokens[right]));
    if (!ranks.has(left * V + right)) ranks.set(left * V + right, rank);
  }
  const bytes = (id) => Uint8Array.from(tokens[id], (character) => character.charCodeAt(0));
  const encoder = new TextEncoder();
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  function words(text) { // what is left between matches is a word, too
    const found = [];
    let end = 0;
    for (const match of text.matchAll(splitting)) {
      if (match.index > end) found.push(text.slice(end, match.index));
      found.push(match[0]);
      end = match.index + match[0].length;
    }
    return end < text.length ? [...found, text.slice(end)] : found;
  }
  // Merges the pair of the lowest rank, the leftmost of several, until there is none: a heap of pairs over a linked list.
  function merged(word) {
    const ids = Array.from(encoder.encode(word), (byte) => idOf.get(String.fromCharCode(byte)));
    const n = ids.length;
    const [before, after, heap] = [ids.map((_, i) => i - 1), ids.map((_, i) => i + 1), []];
    const rankAt = (i) => (after[i] < n ? ranks.get(ids[i] * V + ids[after[i]]) : undefined);
    const offer = (i) => rankAt(i) !== undefined && push(heap, rankAt(i) * n + i);
    ids.forEach((_, i) => offer(i));
    while (heap.length) {
      const key = pop(heap);
      const [rank, i] = [Math.floor(key / n), key % n];
      if (rankAt(i) !== rank) continue; // one of its parts has been merged meanwhile
      const gone = after[i];
      [ids[i], ids[gone], after[i]] = [made[rank], -1, after[gone]];
      if (after[i] < n) before[after[i]] = i;
      offer(before[i]);
      offer(i);
    }
    return ids.filter((id) => id !== -1);
  }
  const wellFormed = (text) => decoder.decode(encoder.encode(text)); // half a surrogate pair becomes U+FFFD
  return { encode: (text) => words(wellFormed(text)).flatMap(merged), bytes, read: (id) => decoder.decode(bytes(id)) };
}

// A binary heap of numbers, least first.
function push(heap, key) {
  let at = heap.push(key) - 1;
  for (let up; at && heap[(up = (at - 1) >> 1)] > key; at = up) heap[at] = heap[up];
  heap[at] = key;
}

function pop(heap) {
  const [least, key] = [heap[0], heap.pop()];
  for (let at = 0, down = 1; heap.length; down = 2 * at + 1) {
    if (heap[down + 1] < heap[down]) down++;
    if (!(heap[down] < key)) {
      heap[at] = key;
      break;
    }
    heap[at] = heap[down];
    at = down;
  }
  return least;
}

// Weights -------------------------------------------------------------------------------------------------------------

// Vectors are fp32. The weight in row r of a matrix is its 8-bit number times scale[r].
function readWeights({ weights, tensors }) {
  const characters = atob(weights);
  const bytes = new Uint8Array(characters.length); // Uint8Array.from would make a list of them first: 2 GB for GPT-2
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  const { buffer } = bytes;
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { shape: [rows, columns], offset, scale }]) => [
      name,
      columns === undefined
        ? new Float32Array(buffer, offset, rows)
        : { rows, columns, data: new Int8Array(buffer, offset, rows * columns), scale: new Float32Array(buffer, scale, rows) },
    ]),
  );
}

// Returns x W^T + b, (T, rows), of x (T, columns). Four rows at a time: each number of x is read once for them.
function linear({ rows, columns, data, scale }, x, bias = null) {
  const T = x.length / columns;
  const y = new Float32Array(T * rows);
  for (let t = 0; t < T; t++) {
    const input = x.subarray(t * columns, (t + 1) * columns);
    let r = 0;
    for (; r + 3 < rows; r += 4) {
      const [a, b, c, d] = [r * columns, (r + 1) * columns, (r + 2) * columns, (r + 3) * columns];
      let [p, q, u, v] = [0, 0, 0, 0];
      for (let i = 0; i < columns; i++) {
        const value = input[i];
        p += data[a + i] * value;
        q += data[b + i] * value;
        u += data[c + i] * value;
        v += data[d + i] * value;
      }
      y[t * rows + r] = p * scale[r];
      y[t * rows + r + 1] = q * scale[r + 1];
      y[t * rows + r + 2] = u * scale[r + 2];
      y[t * rows + r + 3] = v * scale[r + 3];
    }
    for (; r < rows; r++) y[t * rows + r] = dot(data, r * columns, input, 0, columns) * scale[r];
    if (bias) for (r = 0; r < rows; r++) y[t * rows + r] += bias[r];
  }
  return y;
}

function dot(a, i, b, j, n) {
  let sum = 0;
  for (let k = 0; k < n; k++) sum += a[i + k] * b[j + k];
  return sum;
}

// Network -------------------------------------------------------------------------------------------------------------

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const silu = (x) => x * sigmoid(x);
const geluTanh = (x) => 0.5 * x * (1 + Math.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
const ACTIVATIONS = {
  gelu_tanh: geluTanh,
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  relu: (x) => Math.max(x, 0),
  relu2: (x) => Math.max(x, 0) ** 2,
  silu,
};
const GATES = { glu: sigmoid, geglu: geluTanh, swiglu: silu };

function erf(x) { // Abramowitz & Stegun 7.1.26: within 1.5e-7
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

const softCapped = (x, cap) => (cap === null ? x : cap * Math.tanh(x / cap));

function added(x, y) {
  const sum = new Float32Array(x);
  for (let i = 0; i < sum.length; i++) sum[i] += y[i];
  return sum;
}

function makeNetwork(config, weights) {
  const { n_layer: L, n_head: H, n_kv_head: K, n_embd: C, n_ctx, windows, rotary, slopes } = config;
  const D = C / H;
  const matrix = (name, x) => linear(weights[`${name}.weight`], x, weights[`${name}.bias`]);

  function norm(name, x, width = C) {
    const [weight, bias] = [weights[`${name}.weight`], weights[`${name}.bias`]];
    const y = new Float32Array(x.length);
    for (let start = 0; start < x.length; start += width) {
      let [mean, square] = [0, 0];
      if (config.norm === "layernorm") {
        for (let i = 0; i < width; i++) mean += x[start + i] / width;
      }
      for (let i = 0; i < width; i++) square += (x[start + i] - mean) ** 2 / width;
      const over = 1 / Math.sqrt(square + config.norm_eps);
      for (let i = 0; i < width; i++) y[start + i] = (x[start + i] - mean) * over * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
    }
    return y;
  }

  function embed(ids, start) {
    const x = new Float32Array(ids.length * C);
    const add = ({ data, scale }, row, t) => {
      for (let i = 0; i < C; i++) x[t * C + i] += data[row * C + i] * scale[row];
    };
    ids.forEach((id, t) => {
      add(weights["wte.weight"], id, t);
      if (config.position === "learned") add(weights["wpe.weight"], start + t, t);
      if (config.position !== "sinusoidal") return;
      for (let i = 0; i < C; i++) {
        const angle = (start + t) * 10000 ** (-(i - (i % 2)) / C);
        x[t * C + i] += config.sinusoid_scale * (i % 2 ? Math.cos(angle) : Math.sin(angle));
      }
    });
    return config.embedding_norm ? norm("ln_0", x) : x;
  }

  // Rotates the heads in x (T, n * D), in place; row t is at position start + t.
  function rotate(x, n, start) {
    const { frequencies, length, interleaved } = rotary;
    const half = frequencies.length;
    for (let t = 0; t < x.length / (n * D); t++) {
      for (let pair = 0; pair < half; pair++) {
        const angle = (start + t) * frequencies[pair];
        const [cos, sin] = [length * Math.cos(angle), length * Math.sin(angle)];
        const [i, j] = interleaved ? [2 * pair, 2 * pair + 1] : [pair, pair + half];
        for (let head = t * n * D; head < (t + 1) * n * D; head += D) {
          const [a, b] = [x[head + i], x[head + j]];
          x[head + i] = a * cos - b * sin;
          x[head + j] = b * cos + a * sin;
        }
      }
    }
  }

  // Queries (T, H * D), keys and values (T, K * D) of x (T, C), normalized and rotated.
  function project(l, x, start) {
    const [T, at] = [x.length / C, `h.${l}.attn`];
    const all = matrix(`${at}.c_attn`, x);
    const columns = (from, n) => {
      const part = new Float32Array(T * n * D);
      for (let t = 0; t < T; t++) part.set(all.subarray((t * (H + 2 * K) + from) * D, (t * (H + 2 * K) + from + n) * D), t * n * D);
      return part;
    };
    let [q, k, v] = [columns(0, H), columns(H, K), columns(H + K, K)];
    if (config.qk_norm) [q, k] = [norm(`${at}.q_norm`, q, D), norm(`${at}.k_norm`, k, D)];
    if (rotary?.layers[l]) {
      rotate(q, H, start);
      rotate(k, K, start);
    }
    return [q, k, v];
  }

  function attention(l, x, cache, off, seen) {
    const [T, at, start, { keys, values }] = [x.length / C, `h.${l}.attn`, cache.length, cache.layers[l]];
    const [q, k, v] = project(l, x, start);
    const slot = (position) => (position % n_ctx) * K * D;
    const mixed = weights[`${at}.residual.lambdas`]; // with the values of the first layer, which the cache holds
    for (let i = 0; mixed && i < v.length; i++) {
      const first = cache.layers[0].values[slot(start + Math.floor(i / (K * D))) + (i % (K * D))];
      v[i] = mixed[0] * first + mixed[1] * v[i];
    }
    for (let t = 0; t < T; t++) {
      keys.set(k.subarray(t * K * D, (t + 1) * K * D), slot(start + t));
      values.set(v.subarray(t * K * D, (t + 1) * K * D), slot(start + t));
      const first = windows[l] === null ? 0 : Math.max(0, start + t - windows[l] + 1);
      for (let h = 0; h < H; h++) attend(h, first, t);
    }
    function attend(h, first, t) {
      const [query, head, last] = [(t * H + h) * D, Math.floor((h * K) / H) * D, start + t];
      const scores = new Float64Array(last - first + 1);
      const sink = weights[`${at}.sinks`]?.[h];
      let most = sink ?? -Infinity;
      for (let i = 0; i < scores.length; i++) {
        const score = dot(q, query, keys, slot(first + i) + head, D) / Math.sqrt(D);
        scores[i] = softCapped(score, config.attention_softcap) - (slopes ? slopes[h] * (last - first - i) : 0);
        most = Math.max(most, scores[i]);
      }
      let total = sink === undefined ? 0 : Math.exp(sink - most);
      for (let i = 0; i < scores.length; i++) total += scores[i] = Math.exp(scores[i] - most);
      q.fill(0, query, query + D); // the query has been read: its place takes the output
      for (let i = 0; i < scores.length; i++) {
        const [weight, value] = [scores[i] / total, slot(first + i) + head];
        if (seen?.attention) seen.attention[((l * H + h) * T + t) * T + first + i] = weight;
        for (let d = 0; d < D; d++) q[query + d] += weight * values[value + d];
      }
    }
    if (config.attention_gate) matrix(`${at}.gate.c_gate`, x).forEach((gate, i) => (q[i] *= sigmoid(gate)));
    for (let h = 0; h < H; h++) {
      if (off.has(`head:${l}.${h}`)) for (let t = 0; t < T; t++) q.fill(0, (t * H + h) * D, (t * H + h + 1) * D);
    }
    return matrix(`${at}.c_proj`, q);
  }

  function feedForward(l, x) {
    const inner = matrix(`h.${l}.mlp.c_fc`, x);
    const gate = GATES[config.activation];
    if (!gate) return matrix(`h.${l}.mlp.c_proj`, inner.map(ACTIVATIONS[config.activation]));
    const T = x.length / C;
    const F = inner.length / T / 2;
    const gated = new Float32Array(T * F);
    for (let t = 0; t < T; t++) {
      for (let i = 0; i < F; i++) gated[t * F + i] = gate(inner[2 * t * F + i]) * inner[(2 * t + 1) * F + i];
    }
    return matrix(`h.${l}.mlp.c_proj`, gated);
  }

  function block(l, x, cache, off, seen) {
    const placement = config.norm_placement;
    const on = (part) => !off.has(`${part}:${l}`) && !off.has(`layer:${l}`);
    const attend = (input) => attention(l, input, cache, off, seen);
    const feed = (input) => feedForward(l, input);
    if (config.parallel_blocks) {
      const input = norm(`h.${l}.ln_1`, x);
      const [a, m] = [attend(input), feed(input)];
      const y = on("attention") ? added(x, a) : x;
      return on("mlp") ? added(y, m) : y;
    }
    for (const [part, name, branch] of [["attention", `h.${l}.ln_1`, attend], ["mlp", `h.${l}.ln_2`, feed]]) {
      let y = branch(placement === "post" ? x : norm(name, x));
      if (placement === "sandwich") y = norm(`${name}_post`, y);
      x = on(part) ? added(x, y) : x;
      if (placement === "post") x = norm(name, x);
    }
    return x;
  }

  // Runs the stream x (T, C), at the positions that follow the cache, through the blocks from `first` on.
  function run(x, cache, off, first = 0, seen = null) {
    const T = x.length / C;
    for (let l = first; l < L; l++) {
      x = block(l, x, cache, off, seen);
      seen?.streams.push(x);
    }
    cache.length += T;
    return x;
  }

  function logits(x) {
    const final = config.norm_placement === "post" ? x : norm("ln_f", x);
    const head = weights["lm_head.weight"] ?? weights["wte.weight"];
    return linear(head, final).map((logit) => softCapped(logit * config.logit_scale, config.logit_softcap));
  }

  const size = n_ctx * K * D;
  const newCache = () => ({ length: 0, layers: windows.map(() => ({ keys: new Float32Array(size), values: new Float32Array(size) })) });
  const copyCache = ({ length, layers }) => ({ length, layers: layers.map(({ keys, values }) => ({ keys: keys.slice(), values: values.slice() })) });
  const endless = config.position !== "learned" && windows.every((window) => window !== null && window < n_ctx);
  return { embed, run, logits, newCache, copyCache, endless };
}

function switchedOff(parts, L, H) {
  for (const part of parts) {
    const [, layer, head] = /^(?:head:(?=\d+\.)|(?:attention|mlp|layer):(?=\d+$))(\d+)(?:\.(\d+))?$/.exec(part) ?? [];
    if (!(layer < L && (head ?? 0) < H)) throw new Error(`cannot switch off "${part}"; give head:LAYER.HEAD, attention:LAYER, mlp:LAYER or layer:LAYER, below ${L} layers and ${H} heads`);
  }
  return new Set(parts);
}

// Sampling ------------------------------------------------------------------------------------------------------------

function softmax(logits, temperature = 1) {
  let [most, total] = [-Infinity, 0];
  for (let i = 0; i < logits.length; i++) if (logits[i] > most) most = logits[i];
  const p = new Float64Array(logits.length);
  for (let i = 0; i < p.length; i++) total += p[i] = Math.exp((logits[i] - most) / temperature);
  for (let i = 0; i < p.length; i++) p[i] /= total;
  return p;
}

// The indices of the k largest values, largest first; of equal ones the lower index comes first.
function largest(values, k) {
  if (k > FEW) return [...values.keys()].sort((i, j) => values[j] - values[i] || i - j).slice(0, k);
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (best.length === k && values[i] <= values[best[k - 1]]) continue;
    let at = best.length;
    while (at && values[i] > values[best[at - 1]]) at--;
    best.splice(at, 0, i);
    if (best.length > k) best.pop();
  }
  return best;
}

// The distributions (V,) after temperature, after the k most probable, and after the fewest of these with the mass top_p,
// which is the one that is drawn from.
function distributions(logits, { temperature, top_k, top_p, greedy }) {
  if (greedy) {
    const all = softmax(logits);
    const first = among(all, largest(logits, 1));
    return { temperature: all, top_k: first, kept: first };
  }
  if (!(temperature > 0)) throw new Error(`temperature is ${temperature}; it must be positive (greedy takes the most probable token)`);
  if (!(top_k === null || top_k >= 1)) throw new Error(`top_k is ${top_k}; it must be at least 1; leave it out for all tokens`);
  if (!(top_p === null || (top_p > 0 && top_p <= 1))) throw new Error(`top_p is ${top_p}; it must be above 0 and at most 1`);
  const all = softmax(logits, temperature);
  let order = top_k === null ? null : largest(logits, top_k);
  const most = order ? among(all, order) : all;
  if ((top_p ?? 1) === 1) return { temperature: all, top_k: most, kept: most };
  order ??= largest(logits, FEW);
  if (top_k === null && sumOf(all, order) < top_p) order = largest(logits, all.length);
  let [mass, n] = [0, 0];
  while (n < order.length && mass < top_p) mass += most[order[n++]];
  return { temperature: all, top_k: most, kept: among(most, order.slice(0, n)) };
}

const sumOf = (p, ids) => ids.reduce((sum, id) => sum + p[id], 0);

// A distribution that keeps these ids only.
function among(p, ids) {
  const [kept, mass] = [new Float64Array(p.length), sumOf(p, ids)];
  for (const id of ids) kept[id] = p[id] / mass;
  return kept;
}

function draw(p, u) {
  let id = -1;
  for (let i = 0; i < p.length && u >= 0; i++) {
    if (p[i] > 0) [id, u] = [i, u - p[i]];
  }
  return id;
}

// Uniform numbers in [0, 1), one for each call: xorshift (Marsaglia 2003). The first ones of near seeds are alike.
function randomNumbers(seed) {
  let state = Math.imul(seed + 1, 0x9e3779b1) || 1;
  const next = () => {
    for (const shift of [13, -17, 5]) state ^= shift > 0 ? state << shift : state >>> -shift;
    return (state >>> 0) / 2 ** 32;
  };
  for (let n = 0; n < 16; n++) next();
  return next;
}
