// "Use it from code": the request of a tool as curl, as Python, and with the client people know.
const pythonValue = value => JSON.stringify(value, null, 4).replaceAll(/: null\b/g, ": None").replaceAll(/: true\b/g, ": True").replaceAll(/: false\b/g, ": False");
const quoted = text => "'" + text.replaceAll("'", "'\\''") + "'";
const CODE = {
  curl: (path, body) => `curl ${location.origin}${path} \\\n  -H 'Content-Type: application/json' \\\n${$("key").value ? "  -H \"Authorization: Bearer $KEY\" \\\n" : ""}  -d ${quoted(JSON.stringify(body))}\n`,
  Python: (path, body) => `import httpx\n\nanswer = httpx.post(\n    "${location.origin}${path}",\n    json=${indent(pythonValue(body))},\n${$("key").value ? '    headers={"Authorization": "Bearer YOUR_KEY"},\n' : ""}    timeout=60,\n)\nanswer.raise_for_status()\nprint(answer.json())\n`,
  "OpenAI client": (path, {model, input, ...extra}) => `from openai import OpenAI\n\nclient = OpenAI(base_url="${location.origin}/v1", api_key="${$("key").value ? "YOUR_KEY" : "none"}")\nanswer = client.embeddings.create(\n    model=${JSON.stringify(model)},\n    input=${indent(pythonValue(input))},\n` +
    `${Object.keys(extra).length ? `    extra_body=${indent(pythonValue(extra))},\n` : ""})\nprint([len(item.embedding) for item in answer.data])\n`,
  "Cohere client": (path, {model, query, documents, instruction}) => `import cohere\n\nclient = cohere.ClientV2(api_key="${$("key").value ? "YOUR_KEY" : "none"}", base_url="${location.origin}")\nanswer = client.rerank(\n    model=${JSON.stringify(model)},\n    query=${JSON.stringify(query)},\n    documents=${indent(pythonValue(documents))},\n` +
    `${instruction ? `    request_options={"additional_body_parameters": ${JSON.stringify({instruction})}},\n` : ""})\nfor result in answer.results:\n    print(result.index, result.relevance_score)\n`,
};
const indent = text => text.replaceAll("\n", "\n    ");
const KINDS_OF = {"/v1/rerank": ["curl", "Python", "Cohere client"], "/v1/embeddings": ["curl", "Python", "OpenAI client"], "/prompt": ["curl", "Python"]};
function codePanel(name) {
  const [path] = tools[name].asked(), shown = el("pre", {tabIndex: 0}), copy = el("button", {type: "button", className: "copy", textContent: "Copy"});
  let kind = KINDS_OF[path][0];
  const refresh = () => { shown.textContent = CODE[kind](...tools[name].asked()); };
  const kinds = KINDS_OF[path].map(each => el("button", {type: "button", textContent: each, "aria-pressed": each === kind}));
  for (const button of kinds) button.onclick = () => {
    kind = button.textContent;
    for (const other of kinds) other.setAttribute("aria-pressed", other === button);
    refresh();
  };
  copy.onclick = () => { refresh(); toClipboard(shown.textContent, copy); };
  const panel = el("details", {className: "code"}, el("summary", {textContent: "Copy as curl, Python or a client"}), el("div", {className: "kinds"}, ...kinds, copy), shown);
  panel.ontoggle = refresh;
  document.querySelector(`#${name} form`).append(panel);
  document.querySelector(`#${name} form`).addEventListener("input", () => { if (panel.open) refresh(); });
}
