// Search: a file of the reader's, cut into chunks and embedded once; the same texts serve Dimensions and Map.
const EXAMPLE = `Birds | Many migrating birds sense the magnetic field of the Earth and follow it.
Birds | Homing pigeons find their way home by the sun and by landmarks such as rivers and roads.
Birds | Young storks learn the route south from older storks that fly ahead.
Birds | Owls turn their heads because their eyes cannot move.
Birds | Penguins huddle together to keep warm in the Antarctic winter.
Sea | Salmon find the way back to the river where they hatched by its smell.
Sea | Sea turtles come home after many years to lay eggs on the beach where they were born.
Sea | Whales sing songs that travel hundreds of kilometres under water.
Sea | Corals are animals that live together with algae.
Sea | The octopus has three hearts and blue blood.
Kitchen | Bread rises because yeast makes gas in the dough.
Kitchen | Salt makes water boil at a slightly higher temperature.
Kitchen | Onions make you cry when their cells are cut.
Kitchen | Butter browns when the water in it is gone.
Kitchen | Rice is the staple food of more than half of the people in the world.
Space | The Moon always shows the same side to the Earth.
Space | A day on Venus is longer than its year.
Space | Light from the Sun takes about eight minutes to reach us.
Space | Jupiter is the largest planet of the solar system.
Space | Gravity is a force that attracts two bodies towards each other.
Cities | Beijing is the capital of China.
Cities | Paris lies on the river Seine.
Cities | The underground of London is the oldest in the world.
Cities | Venice is built on wooden piles in a lagoon.
Cities | Cairo is the largest city of the Arab world.
Machines | A bicycle stays upright more easily when it moves.
Machines | Steam engines turned heat into motion and changed the world.
Machines | A compass needle points to magnetic north.
Machines | Computers store numbers as zeros and ones.
Machines | An electric motor turns current into rotation.`;
const texts = {name: "", source: "", chunks: [], left: 0, version: 0};
const cache = new Map();  // model and text → Float32Array; lives as long as the page
let stopper = null;

function loadTexts(name, source, column) {
  const size = +$("f-size").value;
  const read = name === "example" ? {chunks: EXAMPLE.split("\n").map(line => { const [group, text] = line.split(" | "); return {text, group}; })} : chunksOf(name, source, size, column);
  if (!read.chunks.length) throw new Error(`${name} has no text in it`);
  Object.assign(texts, {name, source, chunks: read.chunks.slice(0, MOST_CHUNKS), left: Math.max(0, read.chunks.length - MOST_CHUNKS), version: texts.version + 1});
  $("f-columns").hidden = !read.columns || read.columns.length < 2;
  if (read.columns) $("f-column").replaceChildren(...read.columns.map(name => el("option", {textContent: name, value: name, selected: name === read.column})));
  tellTexts();
}
function tellTexts() {
  const have = texts.chunks.filter(part => cache.has(keyOf($("q-model").value, part.text))).length;
  const about = texts.chunks.length ? `${texts.name}: ${count(texts.chunks.length, "chunk")}` + (texts.left ? ` (the first; ${texts.left.toLocaleString("en")} more were left out)` : "") : "";
  $("f-note").className = "note";
  $("f-note").textContent = about ? `${about}, ${have === texts.chunks.length ? "all" : have.toLocaleString("en")} embedded` : "No texts yet.";
  for (const id of ["d-texts", "m-texts"]) $(id).replaceChildren(about ? `Uses ${about}. ` : "Uses the built-in example. ", el("a", {href: "#search", textContent: "Other texts"}));
}
const keyOf = (model, text) => model + "\n" + text;
async function readFile(file) {
  const note = $("f-note");
  try {
    if (file.size > MOST_BYTES) throw new Error(`${file.name} has ${(file.size / 1e6).toFixed(0)} MB; this page takes ${MOST_BYTES / 1e6} MB. Use the command line for more: qwen3-embedding index`);
    let source;
    try { source = new TextDecoder("utf-8", {fatal: true}).decode(await file.arrayBuffer()); }
    catch { throw new Error(`${file.name} is not UTF-8 text; convert it`); }
    loadTexts(file.name, source);
    await embedTexts();
  } catch (error) { note.className = "status error"; note.textContent = error.message; }
}
// Vectors of documents, from the cache or the server: batches side by side, in the lane for bulk, with progress.
async function embedTexts(model = $("q-model").value) {
  if (!texts.chunks.length) loadTexts("example", "");
  const wanted = [...new Set(texts.chunks.map(part => part.text))].filter(text => !cache.has(keyOf(model, text)));
  const size = Math.min(32, (info && info.max_client_batch_size) || 32), batches = [];
  for (let i = 0; i < wanted.length; i += size) batches.push(wanted.slice(i, i + size));
  if (batches.length) {
    if (stopper) stopper.abort();
    stopper = new AbortController();
    const mine = stopper, bar = $("f-progress");
    bar.hidden = $("f-stop").hidden = false;
    bar.max = wanted.length;
    bar.value = 0;
    const worker = async () => {
      for (let batch = batches.shift(); batch; batch = batches.shift()) {
        const answer = await call("/v1/embeddings", drop({model, input: batch, input_type: "document", encoding_format: "base64", truncation: "end"}),
          {signal: mine.signal, retries: 20, headers: {"x-priority": "bulk"}});
        decode(answer).forEach((vector, i) => cache.set(keyOf(model, batch[i]), vector));
        bar.value += batch.length;
        tellTexts();
      }
    };
    try { await Promise.all([1, 2, 3].map(worker)); }
    catch (error) {
      mine.abort();
      throw error.name === "AbortError" ? new Error("stopped; what is embedded stays") : error;
    } finally { if (stopper === mine) { bar.hidden = $("f-stop").hidden = true; } }
  }
  tellTexts();
  return texts.chunks.map(part => cache.get(keyOf(model, part.text)));
}
async function embedQuery(text, model, instruction) {
  const answer = await call("/v1/embeddings", drop({model, input: [text], input_type: "query", instruction, encoding_format: "base64"}));
  return {vector: decode(answer)[0], answer};
}
tools.search = {
  prefix: "q",
  asked: () => ["/v1/embeddings", drop({model: $("q-model").value, input: [said("q-query")], input_type: "query", instruction: said("q-instruction")})],
  shown: tellTexts,
  async run() {
    const query = said("q-query"), instruction = said("q-instruction"), model = $("q-model").value, top = +$("q-top").value;
    if (!query) throw new Error("Write a query.");
    const vectors = await embedTexts(), {vector, answer} = await embedQuery(query, model, instruction);
    const began = performance.now(), scores = vectors.map(v => dot(vector, v));
    const candidates = Math.max(top, +$("q-candidates").value), found = best(scores, candidates), scan = performance.now() - began;
    const dense = found.slice(0, top).map((i, place) => hitCard({place, score: scores[i], text: texts.chunks[i].text, from: texts.chunks[i].group, top: Math.max(scores[found[0]], 1e-9)}));
    const left = el("div", {}, el("h2", {textContent: "Embedding · cosine"}), ...dense);
    let note = `${count(vectors.length, "chunk")} · query ${answer.ms.toFixed(0)} ms · scan ${scan.toFixed(1)} ms`;
    if (!+$("q-candidates").value || !info.rerankers.length) { $("q-out").replaceChildren(left); return note; }
    const short = found.slice(0, +$("q-candidates").value), pairs = short.map(i => texts.chunks[i].text);
    const ranked = await call("/rerank", drop({query, texts: pairs, instruction, raw_scores: true, truncate: true}), {retries: 5});
    const cards = ranked.data.slice(0, top).map((hit, place) => hitCard({place, was: hit.index, score: sigmoid(hit.score), logit: hit.score, text: pairs[hit.index],
      from: texts.chunks[short[hit.index]].group, pair: drop({query, document: pairs[hit.index], instruction})}));
    $("q-out").replaceChildren(el("div", {className: "two"}, left, el("div", {}, el("h2", {textContent: `Reranked · of ${count(short.length, "candidate")}`}), ...cards)));
    return `${note} · rerank ${ranked.ms.toFixed(0)} ms`;
  },
};
