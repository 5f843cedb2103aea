// Rerank: scores, log-odds, moves, and the exact prompt of each pair.
const sigmoid = x => 1 / (1 + Math.exp(-x));
function moved(was, now) {
  const by = was - now, name = by > 0 ? "up" : by < 0 ? "down" : "";
  return el("span", {className: "move " + name, title: `was ${was + 1}, is ${now + 1}`, "aria-label": by ? `moved ${by > 0 ? "up" : "down"} by ${Math.abs(by)}` : "did not move"},
    `was ${was + 1}`, el("b", {textContent: by > 0 ? `▲ ${by}` : by < 0 ? `▼ ${-by}` : "="}));
}
// One result. `pair` is what the prompt route needs for it.
function hitCard({place, score, logit, was, text, pair, from, top = 1}) {
  const head = el("div", {className: "top"}, el("span", {className: "place", textContent: `${place + 1}.`}), el("span", {className: "score", textContent: score.toFixed(4)}));
  if (logit !== undefined) head.append(el("span", {className: "logit", textContent: `log-odds ${logit.toFixed(2)}`}));
  if (was !== undefined) head.append(moved(was, place));
  const words = el("div", {className: "text", textContent: text});
  if (text.length > 320) {
    words.classList.add("clamp");
    words.title = "click to unfold";
    words.onclick = () => words.classList.toggle("clamp");
  }
  const card = el("div", {className: "hit"}, head, el("div", {className: "meter"}, el("i", {style: `width:${Math.max(0, 100 * score / top).toFixed(1)}%`})), words);
  if (from) card.append(el("div", {className: "from", textContent: from}));
  if (pair) card.append(promptOf(pair));
  return card;
}
function promptOf(body) {
  const more = el("details", {}, el("summary", {textContent: "exact prompt"}));
  more.addEventListener("toggle", async () => {
    if (!more.open || more.childElementCount > 1) return;
    try { more.append(...renderedPrompt((await call("/prompt", body)).data)); }
    catch (error) { more.append(el("p", {className: "status error", textContent: error.message})); }
  });
  return more;
}
// Cards slide from where they were to where they are.
function slide(cards, before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const tops = cards.map(card => card.offsetTop);
  cards.forEach((card, place) => {
    const from = tops[Math.min(before[place], tops.length - 1)];
    if (from !== tops[place]) card.animate([{transform: `translateY(${from - tops[place]}px)`}, {transform: "none"}], {duration: 420, easing: "cubic-bezier(.2,.8,.2,1)"});
  });
}
tools.rerank = {
  prefix: "r",
  asked: () => ["/v1/rerank", drop({model: $("r-model").value, query: said("r-query"), documents: lines("r-docs"), instruction: said("r-instruction")})],
  async run() {
    const [, {documents, ...body}] = tools.rerank.asked();
    if (!body.query || !documents.length) throw new Error("Write a query, and at least one document.");
    const answer = await call("/rerank", {...body, texts: documents, raw_scores: true});
    const cards = answer.data.map((hit, place) => hitCard({place, was: hit.index, score: sigmoid(hit.score), logit: hit.score, text: documents[hit.index],
      pair: drop({query: body.query, document: documents[hit.index], instruction: body.instruction, model: body.model})}));
    $("r-out").replaceChildren(...cards);
    slide(cards, answer.data.map(hit => hit.index));
    return `${count(documents.length, "document")} · ${timing(answer)}`;
  },
};
