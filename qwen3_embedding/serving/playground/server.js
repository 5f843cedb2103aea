// Server: what is loaded, how busy it is; asked every two seconds while the tab is open.
const history = new Map(), KEPT = 60;
let timer = 0;
const NAMES = {waiting_tokens: "tokens waiting", running_tokens: "tokens in the batch", tokens_per_second: "tokens a second, when busy", computed_tokens: "tokens computed", joined: "joined with an equal text",
  cache_hits: "answered from the cache", worker_restarts: "worker restarts", max_tokens: "longest text, tokens", max_batch_tokens: "largest batch, tokens", max_waiting_tokens: "most waiting tokens"};
const shownValue = value => typeof value === "number" ? value.toLocaleString("en") : Array.isArray(value) ? value.join(", ") : value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
// Tokens computed between polls, a bar each.
function sparkline(name, computed) {
  const seen = history.get(name) || [];
  seen.push({at: performance.now(), computed});
  if (seen.length > KEPT + 1) seen.shift();
  history.set(name, seen);
  const rates = seen.slice(1).map((now, i) => Math.max(0, now.computed - seen[i].computed) / ((now.at - seen[i].at) / 1000)), top = Math.max(1, ...rates);
  const out = svg("svg", {viewBox: `0 0 ${KEPT * 5} 42`, class: "spark", role: "img", "aria-label": "tokens a second over the last two minutes", preserveAspectRatio: "none"});
  rates.forEach((rate, i) => out.append(svg("rect", {x: (KEPT - rates.length + i) * 5, y: 42 - 40 * rate / top, width: 4, height: 40 * rate / top, fill: "var(--accent)", rx: 1}, svg("title", {}, `${rate.toFixed(0)} tokens/s`))));
  return [out, rates.length ? rates[rates.length - 1] : 0];
}
function modelCard(model, kind) {
  const [bars, rate] = sparkline(model.name, model.computed_tokens);
  const waiting = Math.min(1, model.waiting_tokens / (model.max_waiting_tokens || 1));
  const rows = Object.entries(model).filter(([name]) => !["name", "dtype", "device"].includes(name)).map(([name, value]) =>
    el("tr", {}, el("th", {textContent: NAMES[name] || name.replaceAll("_", " ")}), el("td", {textContent: shownValue(value)})));
  return el("div", {className: "card"}, el("h3", {textContent: model.name}), el("p", {className: "note", style: "margin-top:2px", textContent: `${kind} · ${model.dtype} on ${model.device}`}),
    bars, el("p", {className: "note", style: "margin:2px 0 8px", textContent: `${rate.toFixed(0)} tokens a second now; the bars are the last two minutes`}),
    el("div", {className: "load", title: "how full the queue is"}, el("i", {style: `width:${(100 * waiting).toFixed(1)}%`})), el("span", {className: "note", textContent: `queue ${(100 * waiting).toFixed(0)}% full`}),
    el("table", {className: "lines"}, ...rows));
}
async function poll() {
  const status = $("v-status");
  try {
    await load();
    const ready = await fetch("/health/ready");
    status.className = "status";
    status.replaceChildren(el("span", {className: ready.ok ? "chip" : "chip bad", textContent: ready.ok ? "● ready" : "● not ready"}),
      ` version ${info.version} · at most ${info.max_client_batch_size.toLocaleString("en")} texts a request · `, el("a", {href: "/docs", textContent: "routes"}), " · ", el("a", {href: "/metrics", textContent: "metrics"}));
    $("v-out").replaceChildren(el("div", {className: "models"}, ...info.embedders.map(model => modelCard(model, "embedder")), ...info.rerankers.map(model => modelCard(model, "reranker"))));
  } catch (error) { status.className = "status error"; status.textContent = String(error.message || error); }
}
tools.server = {
  prefix: "v",
  shown() {
    clearInterval(timer);
    timer = setInterval(() => { if (current() === "server" && !document.hidden) poll(); else if (current() !== "server") clearInterval(timer); }, 2000);
    poll();
  },
};
