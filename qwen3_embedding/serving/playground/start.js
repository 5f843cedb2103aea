// Everything in its place, then the first look at the server.
for (const [name, label] of Object.entries(TABS)) {
  const tab = el("button", {id: "tab-" + name, textContent: label, onclick: () => location.hash = name, role: "tab", "aria-controls": name});
  $("tabs").append(tab);
  $(name).setAttribute("role", "tabpanel");
  $(name).setAttribute("aria-labelledby", "tab-" + name);
  const form = document.querySelector(`#${name} form`);
  if (form) form.addEventListener("submit", event => { event.preventDefault(); go(name); });
  if (tools[name].asked) codePanel(name);
}
$("tabs").addEventListener("keydown", event => {
  const names = Object.keys(TABS), at = names.indexOf(current()), to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1}[event.key];
  if (to === undefined) return;
  location.hash = names[(to + names.length) % names.length];
  $("tab-" + names[(to + names.length) % names.length]).focus();
  event.preventDefault();
});
document.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && tools[current()].run) { event.preventDefault(); go(current()); }
  if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) {
    const first = document.querySelector(`#${current()} textarea`);
    if (first) { event.preventDefault(); first.focus(); first.select(); }
  }
});

$("f-file").onchange = () => { if ($("f-file").files[0]) readFile($("f-file").files[0]); $("f-file").value = ""; };
$("f-example").onclick = () => { loadTexts("example", ""); embedTexts().catch(error => { $("f-note").textContent = error.message; }); };
$("f-stop").onclick = () => stopper.abort();
const again = column => { if (texts.source) { loadTexts(texts.name, texts.source, column); embedTexts().catch(error => { $("f-note").textContent = error.message; }); } };
$("f-size").onchange = () => again($("f-column").value);
$("f-column").onchange = () => again($("f-column").value);
let depth = 0;  // dragenter and dragleave come for every element on the way
const hasFile = event => [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", event => { if (hasFile(event)) { depth++; document.body.classList.add("dragging"); } });
addEventListener("dragleave", event => { if (hasFile(event) && --depth <= 0) { depth = 0; document.body.classList.remove("dragging"); } });
addEventListener("dragover", event => { if (hasFile(event)) event.preventDefault(); });
addEventListener("drop", event => {
  if (!hasFile(event)) return;
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dragging");
  location.hash = "search";
  readFile(event.dataTransfer.files[0]);
});

for (const id of ["d-size", "d-k", "d-probe"]) $(id).oninput = drawDimensions;
for (const radio of document.querySelectorAll("input[name=d-type]")) radio.oninput = drawDimensions;
$("d-model").onchange = () => tools.dimensions.shown();
$("p-kind").onchange = () => tools.prompt.shown();
$("q-model").onchange = tellTexts;
addEventListener("resize", drawMap);

const darkOutside = matchMedia("(prefers-color-scheme: dark)");
let theme = null;
try { theme = localStorage.getItem("theme"); } catch { theme = null; }  // storage may be forbidden
const paint = () => { document.documentElement.dataset.theme = theme || (darkOutside.matches ? "dark" : "light"); drawMap(); };
$("theme").onclick = () => {
  theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", theme); } catch { /* not kept, then */ }
  paint();
};
darkOutside.addEventListener("change", paint);
$("link").onclick = () => toClipboard(permalink(), $("link"));
const failed = error => $("served").replaceChildren(el("span", {className: "chip bad", textContent: error.message}));
$("key").onchange = () => load().catch(failed);
addEventListener("hashchange", () => { restore(); show(); });
paint();
restore();
show();
load().then(() => { restore(); tools.prompt.shown(); }).catch(failed);
