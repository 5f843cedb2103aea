// Dimensions: what fewer components and smaller types lose, against full float32 vectors.
const MOST_PROBES = 60, MOST_ROWS = 1000;
const measured = {version: -1, model: "", vectors: [], full: [], probes: []};
const typeNow = () => document.querySelector("input[name=d-type]:checked").value;

// Cosines of the probes with all rows, at one size and type.
function cosines(size, type) {
  const rows = measured.vectors.map(v => shrink(v, size, type));
  return measured.probes.map(probe => Float32Array.from(rows, row => dot(rows[probe], row)));
}
function overlaps(scores, k) {
  return scores.map((near, i) => {
    const wanted = best(measured.full[i], k, measured.probes[i]);
    return best(near, k, measured.probes[i]).filter(x => wanted.includes(x)).length / wanted.length;
  });
}
const meanOf = values => values.reduce((sum, x) => sum + x, 0) / values.length;
function sizes(full) {
  const out = [];
  for (let size = 32; size < full; size *= 2) out.push(size);
  return [...out, full];
}
// Overlap at each size, one line a type; computed once for each set of texts and k.
const curves = new Map();
function curvesOf(k) {
  const key = [measured.version, measured.model, k].join();
  if (!curves.has(key)) {
    const at = sizes(measured.vectors[0].length);
    curves.set(key, Object.fromEntries(["float32", "int8", "binary"].map(type => [type, at.map(size => ({size, value: meanOf(overlaps(cosines(size, type), k))}))])));
  }
  return curves.get(key);
}
function chart(k, size, type) {
  const W = 640, H = 250, left = 42, right = 66, top = 12, bottom = 34, lines = curvesOf(k), at = lines.float32.map(point => point.size);
  const low = Math.log2(at[0]), high = Math.log2(at[at.length - 1]);
  const x = size => left + (W - left - right) * (high > low ? (Math.log2(size) - low) / (high - low) : 1), y = value => top + (H - top - bottom) * (1 - value);
  const out = svg("svg", {viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": `overlap at ${k} by dimensions, one line a precision`});
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    out.append(svg("line", {x1: left, x2: W - right, y1: y(value), y2: y(value), stroke: "var(--line)"}));
    out.append(svg("text", {x: left - 8, y: y(value) + 4, "text-anchor": "end"}, value.toFixed(2)));
  }
  for (const size of at) out.append(svg("text", {x: x(size), y: H - 12, "text-anchor": "middle"}, String(size)));
  const colours = {float32: "var(--accent)", int8: "var(--up)", binary: "var(--down)"}, ends = [];
  for (const [name, points] of Object.entries(lines)) {
    out.append(svg("polyline", {points: points.map(point => `${x(point.size)},${y(point.value)}`).join(" "), fill: "none", stroke: colours[name], "stroke-width": name === type ? 3 : 1.5, "stroke-linejoin": "round"}));
    for (const point of points) out.append(svg("circle", {cx: x(point.size), cy: y(point.value), r: name === type ? 3.5 : 2, fill: colours[name]}, svg("title", {}, `${name}, ${point.size} dimensions: ${point.value.toFixed(3)}`)));
    ends.push({name, y: y(points[points.length - 1].value) + 4});
  }
  ends.sort((a, b) => a.y - b.y).forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + 13); });
  for (const end of ends) out.append(svg("text", {x: W - right + 9, y: end.y, style: `fill:${colours[end.name]};font-weight:${end.name === type ? 700 : 400}`}, end.name));
  out.append(svg("line", {x1: x(size), x2: x(size), y1: top, y2: H - bottom, stroke: "var(--ink)", "stroke-dasharray": "3 3", opacity: .6}));
  return out;
}
function neighbours(title, found, other, mark) {
  return el("div", {}, el("h2", {textContent: title}), el("ol", {className: "near"}, ...found.map(i =>
    el("li", {className: other.includes(i) ? "" : mark, textContent: texts.chunks[i].text.slice(0, 160) + (other.includes(i) ? "" : mark === "lost" ? " — lost" : " — new")}))));
}
function drawDimensions() {
  const size = +$("d-size").value, type = typeNow(), k = Math.min(+$("d-k").value, Math.max(1, measured.vectors.length - 1));
  $("d-shown").textContent = size;
  if (!measured.vectors.length) return;
  const near = cosines(size, type), bytes = bytesOf(size, type), whole = 4 * measured.vectors[0].length;
  const number = (value, name) => el("div", {}, el("b", {textContent: value}), el("span", {textContent: name}));
  const numbers = el("div", {className: "numbers"}, number(meanOf(overlaps(near, k)).toFixed(3), `overlap@${k} with full`),
    number(meanOf(near.map((scores, i) => spearman(scores, measured.full[i]))).toFixed(3), "rank correlation"),
    number(bytes.toLocaleString("en"), `bytes a vector, not ${whole.toLocaleString("en")}`), number(`${(whole / bytes).toFixed(whole / bytes < 10 ? 1 : 0)} ×`, "smaller"));
  const probe = measured.probes.indexOf(+$("d-probe").value), self = measured.probes[probe];
  const full = best(measured.full[probe], k, self), now = best(near[probe], k, self);
  $("d-out").replaceChildren(numbers, el("div", {className: "card"}, el("h2", {textContent: `Overlap@${k} by dimensions`}), chart(k, size, type)),
    el("div", {className: "card two", style: "margin-top:16px"}, neighbours("Full vectors", full, now, "lost"), neighbours(`${size} dimensions, ${type}`, now, full, "new")));
}
tools.dimensions = {
  prefix: "d",
  shown() {
    tellTexts();
    const model = embedderNow("d-model"), slider = $("d-size");
    if (!model || +slider.max === model.dimensions) return;
    const whole = +slider.value >= +slider.max;
    slider.max = model.dimensions;
    slider.min = Math.min(32, model.dimensions);
    if (whole || +slider.value > model.dimensions) slider.value = model.dimensions;
    $("d-shown").textContent = slider.value;
  },
  async run() {
    const model = $("d-model").value, vectors = await embedTexts(model);
    if (vectors.length < 3) throw new Error("This needs at least 3 texts.");
    Object.assign(measured, {version: texts.version, model, vectors: vectors.slice(0, MOST_ROWS)});
    const step = Math.max(1, Math.floor(measured.vectors.length / MOST_PROBES));
    measured.probes = measured.vectors.map((_, i) => i).filter(i => i % step === 0).slice(0, MOST_PROBES);
    tools.dimensions.shown();
    measured.full = cosines(measured.vectors[0].length, "float32");
    $("d-probe").replaceChildren(...measured.probes.map(i => el("option", {value: i, textContent: texts.chunks[i].text.slice(0, 80)})));
    drawDimensions();
    return `${count(measured.probes.length, "text")} against ${count(measured.vectors.length - 1, "other")}` + (vectors.length > MOST_ROWS ? ` (the first ${MOST_ROWS} of ${vectors.length.toLocaleString("en")})` : "");
  },
};
