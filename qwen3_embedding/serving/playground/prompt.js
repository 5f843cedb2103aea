// Tokens: the exact prompt, token by token, with what a limit cuts.
const KINDS = {control: ["the model's own", "var(--warm)"], instruction: ["instruction", "var(--tint)"], text: ["text", "var(--soft)"], end: ["end token, pooled", "var(--accent)"], cut: ["cut", "var(--cut)"]};
function renderedPrompt(data) {
  const shown = el("pre", {}), tokens = el("div", {className: "tokens", role: "list"}), kinds = new Set();
  let cutting = false;
  for (const token of data.tokens) {
    if (token.cut && !cutting) tokens.append(el("span", {className: "scissors", textContent: `✂ ${count(data.cut, "token")} cut`}));
    cutting = token.cut;
    const kind = token.cut ? "cut" : token.kind;
    kinds.add(kind);
    tokens.append(el("span", {textContent: token.text.replaceAll("\n", "↵"), title: `id ${token.id} · ${KINDS[kind][0]}`, className: kind, role: "listitem"}));
    if (token.text.includes("\n")) tokens.append(el("br"));
  }
  if (data.left) tokens.append(el("span", {textContent: ` … ${count(data.left, "more token")}`}));
  const [before, lost, after] = data.parts;
  shown.append(before, ...(lost ? [el("span", {className: "cut", textContent: lost})] : []), after);
  const legend = el("div", {className: "legend"}, ...[...kinds].map(kind => el("span", {}, el("i", {style: `background:${KINDS[kind][1]}`}), KINDS[kind][0])));
  return [shown, el("p", {className: "note", textContent: `${count(data.count, "token")}${data.cut ? `; ${data.cut.toLocaleString("en")} more were cut` : ""} · point at one for its id`}), tokens, legend];
}
function promptBody() {
  const kind = $("p-kind").value, text = $("p-text").value, instruction = said("p-instruction"), limit = parseInt(said("p-limit"));
  const common = {model: $("p-model").value, truncate_prompt_tokens: limit > 0 ? limit : undefined};
  return drop(kind === "pair" ? {query: text, document: $("p-document").value, instruction, ...common}
    : {text, input_type: kind, instruction: kind === "query" ? instruction : "", ...common});
}
tools.prompt = {
  prefix: "p",
  asked: () => ["/prompt", promptBody()],
  shown() {
    const pair = $("p-kind").value === "pair";
    $("p-pair").hidden = !pair;
    $("p-task").hidden = $("p-kind").value === "document";
    if (info) offer("p-model", pair ? info.rerankers : info.embedders);
  },
  async run() {
    const answer = await call("/prompt", promptBody());
    $("p-out").replaceChildren(el("div", {className: "card"}, ...renderedPrompt(answer.data)));
    return answer.data.model;
  },
};
