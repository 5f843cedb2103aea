"use strict";
// What every tool uses: elements, calls to the server, status lines, tabs.
const $ = id => document.getElementById(id);
const TABS = {rerank: "Rerank", similarity: "Similarity", search: "Search", dimensions: "Dimensions", map: "Map", prompt: "Tokens", server: "Server"};
const tools = {};  // name → {prefix, run, asked?, fields?, shown?}
let info = null;

function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {}))
    if (name === "style" || name === "role" || name.startsWith("aria-")) node.setAttribute(name, value); else node[name] = value;
  node.append(...children);
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const lines = id => $(id).value.split("\n").map(line => line.trim()).filter(Boolean);
const said = id => $(id).value.trim();
const drop = body => Object.fromEntries(Object.entries(body).filter(([, value]) => value !== "" && value !== undefined && value !== null));
const sleep = (seconds, signal) => new Promise((done, stop) => {
  const timer = setTimeout(done, seconds * 1000);
  if (signal) signal.addEventListener("abort", () => { clearTimeout(timer); stop(signal.reason); }, {once: true});
});
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

async function call(path, body, options = {}) {
  const headers = {"content-type": "application/json", ...options.headers};
  if ($("key").value) headers.authorization = "Bearer " + $("key").value;
  const began = performance.now();
  for (let attempt = 0; ; attempt++) {
    const answer = await fetch(path, body ? {method: "POST", headers, body: JSON.stringify(body), signal: options.signal} : {headers, signal: options.signal});
    if ((answer.status === 429 || answer.status === 503) && attempt < (options.retries || 0)) {
      await sleep(Math.min(+answer.headers.get("retry-after") || 1, 60), options.signal);
      continue;
    }
    const text = await answer.text();
    let data = null;
    try { data = JSON.parse(text); } catch { data = null; }
    if (answer.status === 401) $("key").hidden = false;
    if (!answer.ok) {
      const said = data && (typeof data.error === "string" ? data.error : (data.error && data.error.message) || data.message);
      throw new Error(answer.status === 401 ? "This server needs an API key: type it above." : `${answer.status}: ${said || text}`);
    }
    return {data, ms: performance.now() - began, headers: answer.headers};
  }
}
function timing(answer) {
  const h = answer.headers, cut = +(h.get("x-truncated-count") || 0);
  return `${count(+h.get("x-compute-tokens"), "token")} in ${answer.ms.toFixed(0)} ms (tokenising ${h.get("x-tokenization-time")}, ` +
    `queue ${h.get("x-queue-time")}, model ${h.get("x-inference-time")})` + (cut ? ` · ${count(cut, "text")} cut at the end` : "");
}

// Run a tool: one at a time, its status line tells how it went.
async function go(name) {
  const tool = tools[name], status = $(tool.prefix + "-status"), button = document.querySelector(`#${name} button.go`);
  if (button.disabled) return;
  button.disabled = true;
  status.className = "status";
  status.textContent = "…";
  try { status.textContent = (await tool.run()) || ""; }
  catch (error) { status.className = "status error"; status.textContent = String(error.message || error); }
  finally { button.disabled = false; }
}

// The hash is the tab, and after "?" what is filled in: #rerank?query=…
const current = () => { const name = location.hash.slice(1).split("?")[0]; return TABS[name] ? name : "rerank"; };
function show() {
  for (const name of Object.keys(TABS)) {
    const on = name === current();
    $(name).classList.toggle("on", on);
    $("tab-" + name).setAttribute("aria-selected", on);
    $("tab-" + name).tabIndex = on ? 0 : -1;
  }
  $("tab-" + current()).scrollIntoView({block: "nearest", inline: "nearest"});
  const tool = tools[current()];
  if (tool && tool.shown) tool.shown();
}
function fields(name) {
  return [...$(name).querySelectorAll("textarea, select, input:not([type=file]):not([type=radio])")].filter(field => field.id && !field.closest("[hidden]"));
}
function permalink() {
  const asked = new URLSearchParams();
  for (const field of fields(current())) if (field.value !== field.defaultValue && field.value) asked.set(field.id, field.value);
  return location.origin + location.pathname + "#" + current() + (asked.size ? "?" + asked : "");
}
function restore() {
  const asked = new URLSearchParams(location.hash.split("?").slice(1).join("?"));
  for (const [id, value] of asked) {
    const field = $(id);
    if (field && fields(current()).includes(field)) { field.value = value; field.dispatchEvent(new Event("change")); }
  }
}
async function toClipboard(text, button) {
  const was = button.textContent;
  try { await navigator.clipboard.writeText(text); }
  catch {  // not allowed without HTTPS: the old way
    const box = el("textarea", {value: text});
    document.body.append(box); box.select(); document.execCommand("copy"); box.remove();
  }
  button.textContent = "Copied ✓";
  setTimeout(() => button.textContent = was, 1400);
}

// Models offered by a select; one alone is not offered.
function offer(id, list) {
  const select = $(id), names = list.map(model => model.name), had = select.value;
  if ([...select.options].map(option => option.value).join("\n") !== names.join("\n"))
    select.replaceChildren(...names.map(name => el("option", {textContent: name, value: name})));
  if (names.includes(had)) select.value = had;
  select.hidden = list.length < 2;
  const label = document.querySelector(`label[for="${id}"]`);
  if (label) label.hidden = select.hidden;
}
async function load() {
  info = (await call("/info")).data;
  const models = [...info.embedders, ...info.rerankers];
  $("served").replaceChildren(...models.map(model => el("span", {className: "chip", textContent: `${model.name} · ${model.dtype} · ${model.device}`})));
  for (const id of ["s-model", "q-model", "d-model", "m-model"]) offer(id, info.embedders);
  offer("r-model", info.rerankers);
  offer("p-model", said("p-kind") === "pair" ? info.rerankers : info.embedders);
  for (const field of document.querySelectorAll("textarea[id$=-instruction]")) field.placeholder = info.default_instruction;
  $("key").hidden = !info.keys_required;
  if (current() === "dimensions") tools.dimensions.shown();
}
const embedderNow = id => info && (info.embedders.find(model => model.name === $(id).value) || info.embedders[0]);
