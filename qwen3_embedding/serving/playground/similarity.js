// Similarity: the cosine of every row with every column, as a heatmap.
function sideOf(name) {
  const role = $(`s-${name}-role`).value;
  return drop({model: $("s-model").value, input: lines(`s-${name}`), input_type: role, instruction: role === "query" ? said("s-instruction") : ""});
}
function heatmap(rows, columns, values) {
  const flat = values.flat(), low = Math.min(...flat), high = Math.max(...flat);
  const name = text => el("th", {title: text, scope: "col"}, el("span", {textContent: text}));
  const grid = el("table", {className: "heat"}, el("tr", {}, el("th"), ...columns.map(name)));
  rows.forEach((text, i) => {
    const top = Math.max(...values[i]);
    const head = name(text);
    head.scope = "row";
    grid.append(el("tr", {}, head, ...values[i].map((value, j) => {
      const share = high > low ? (value - low) / (high - low) : 1;
      const ink = share > 0.55 ? "var(--accent-ink)" : "var(--ink)";
      return el("td", {textContent: value.toFixed(3), className: value === top && columns.length > 1 ? "best" : "", title: `${text}\n${columns[j]}\n${value.toFixed(6)}`,
        style: `background:color-mix(in srgb, var(--accent) ${(5 + 83 * share).toFixed(0)}%, var(--panel));color:${ink}`});
    })));
  });
  const scale = el("div", {className: "scale"}, low.toFixed(2), el("i"), high.toFixed(2), el("span", {textContent: "· outlined: the best of each row"}));
  return el("div", {className: "card"}, el("div", {className: "scroll"}, grid), scale);
}
tools.similarity = {
  prefix: "s",
  asked: () => ["/v1/embeddings", sideOf("left")],
  async run() {
    const sides = [sideOf("left"), sideOf("right")];
    if (!sides[0].input.length || !sides[1].input.length) throw new Error("Write at least one row and one column.");
    const answers = await Promise.all(sides.map(body => call("/v1/embeddings", {...body, encoding_format: "base64"})));
    const [left, right] = answers.map(decode);
    $("s-out").replaceChildren(heatmap(sides[0].input, sides[1].input, left.map(a => right.map(b => dot(a, b)))),
      el("p", {className: "note", textContent: "Cosines are relative: compare them within a row, not with a fixed threshold."}));
    return `${count(left.length + right.length, "text")} · ${timing(answers[0])}`;
  },
};
