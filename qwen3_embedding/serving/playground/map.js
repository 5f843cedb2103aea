// Map: two principal components on a canvas; dots by group, nearest neighbours of the one chosen.
const plane = {points: [], vectors: [], query: null, chosen: -1, groups: [], box: null};
const COLOURS = ["#4f63e7", "#e0713a", "#1f9d63", "#c2459b", "#b5891b", "#2a93b8", "#8a5bd6", "#d0454c", "#6b8f2e", "#7a6a5c"];
function placeAt([x, y], width, height) {
  const {low, high} = plane.box, room = 26, fit = (v, i, size) => room + (size - 2 * room) * (high[i] > low[i] ? (v - low[i]) / (high[i] - low[i]) : .5);
  return [fit(x, 0, width), height - fit(y, 1, height)];
}
function nearestOf(i, k = 5) { return best(plane.vectors.map(v => dot(plane.vectors[i], v)), k, i); }
function drawMap() {
  const canvas = $("m-canvas");
  if (!canvas) return;
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name);
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, width, height);
  const at = i => placeAt(plane.points[i], width, height), size = plane.points.length > 1000 ? 2.5 : plane.points.length > 200 ? 4 : 6;
  const near = plane.chosen >= 0 ? nearestOf(plane.chosen) : plane.query ? plane.query.near : [];
  const centre = plane.chosen >= 0 ? at(plane.chosen) : plane.query ? placeAt(plane.query.point, width, height) : null;
  pen.strokeStyle = colour("--dim");
  pen.lineWidth = 1;
  pen.globalAlpha = .7;
  for (const i of near) { const [x, y] = at(i); pen.beginPath(); pen.moveTo(...centre); pen.lineTo(x, y); pen.stroke(); }
  plane.points.forEach((_, i) => {
    const [x, y] = at(i), strong = i === plane.chosen || near.includes(i);
    pen.globalAlpha = strong || (plane.chosen < 0 && !near.length) ? .95 : .6;
    pen.fillStyle = COLOURS[Math.max(0, plane.groups.indexOf(texts.chunks[i].group)) % COLOURS.length];
    pen.beginPath(); pen.arc(x, y, strong ? size + 2 : size, 0, 7); pen.fill();
    if (strong) { pen.strokeStyle = colour("--ink"); pen.lineWidth = 1.5; pen.stroke(); }
  });
  pen.globalAlpha = 1;
  if (plane.query) {
    const [x, y] = placeAt(plane.query.point, width, height);
    pen.fillStyle = colour("--ink");
    pen.beginPath();
    for (let i = 0; i < 10; i++) { const r = i % 2 ? 5 : 12, a = Math.PI * i / 5 - Math.PI / 2; pen.lineTo(x + r * Math.cos(a), y + r * Math.sin(a)); }
    pen.fill();
    pen.font = "600 12px system-ui, sans-serif";
    pen.textAlign = x > width / 2 ? "right" : "left";
    pen.fillText("query", x + (x > width / 2 ? -16 : 16), y + 4);
  }
}
function pointAt(event) {
  const canvas = $("m-canvas"), box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let found = -1, least = 18 ** 2;
  plane.points.forEach((point, i) => { const [px, py] = placeAt(point, box.width, box.height), far = (px - x) ** 2 + (py - y) ** 2; if (far < least) { least = far; found = i; } });
  return found;
}
function tip(i) {
  const box = $("m-tip"), canvas = $("m-canvas");
  box.hidden = i < 0;
  if (i < 0) return;
  const [x, y] = placeAt(plane.points[i], canvas.clientWidth, canvas.clientHeight);
  box.textContent = texts.chunks[i].text.slice(0, 300);
  box.style.left = box.style.right = box.style.top = box.style.bottom = "auto";
  if (x > canvas.clientWidth / 2) box.style.right = canvas.clientWidth - x + 12 + "px"; else box.style.left = x + 12 + "px";
  if (y > canvas.clientHeight / 2) box.style.bottom = canvas.clientHeight - y + 12 + "px"; else box.style.top = y + 12 + "px";
}
function choose(i) {
  plane.chosen = i;
  tip(i);
  drawMap();
  if (i < 0) { tellNear(); return; }
  $("m-near").replaceChildren(el("h2", {textContent: "Nearest to: " + texts.chunks[i].text.slice(0, 120), style: "margin-top:14px"}), nearList(nearestOf(i), plane.vectors[i]));
}
function nearList(found, vector) {
  return el("ol", {className: "near"}, ...found.map(i => el("li", {textContent: `${dot(vector, plane.vectors[i]).toFixed(3)}  ${texts.chunks[i].text.slice(0, 140)}`})));
}
function tellNear() {
  if (plane.query) $("m-near").replaceChildren(el("h2", {textContent: "Nearest to the query", style: "margin-top:14px"}), nearList(plane.query.near, plane.query.vector));
  else $("m-near").replaceChildren();
}
// Arrow keys go to the nearest dot in that direction.
function step(key) {
  const [dx, dy] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[key];
  if (plane.chosen < 0) return choose(0);
  const [x, y] = plane.points[plane.chosen];
  let found = -1, least = Infinity;
  plane.points.forEach(([px, py], i) => {
    const along = (px - x) * dx + (py - y) * dy, aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
    if (i !== plane.chosen && along > 0 && along >= aside && along + 2 * aside < least) { least = along + 2 * aside; found = i; }
  });
  if (found >= 0) choose(found);
}
function mapCard(shares) {
  const canvas = el("canvas", {id: "m-canvas", tabIndex: 0, role: "img", "aria-label": `Map of ${count(plane.points.length, "text")}; arrow keys move between them`});
  canvas.onpointermove = event => tip(pointAt(event));
  canvas.onpointerleave = () => tip(plane.chosen);
  canvas.onclick = event => choose(pointAt(event));
  canvas.onkeydown = event => {
    if (event.key.startsWith("Arrow")) { step(event.key); event.preventDefault(); }
    if (event.key === "Escape") choose(-1);
  };
  const legend = el("div", {className: "legend", style: "margin-top:10px"}, ...plane.groups.slice(0, 24).filter(Boolean).map(group =>
    el("span", {}, el("i", {style: `background:${COLOURS[plane.groups.indexOf(group) % COLOURS.length]}`}), group.slice(0, 40))));
  const share = shares.map(value => (100 * value).toFixed(0) + "%");
  return el("div", {className: "card"}, el("div", {className: "plane"}, canvas, el("div", {className: "tip", id: "m-tip", hidden: true})), legend,
    el("p", {className: "note", textContent: `The two directions hold ${share[0]} and ${share[1]} of the variance, so what is near here need not be near in full.`}));
}
tools.map = {
  prefix: "m",
  shown() { tellTexts(); drawMap(); },
  async run() {
    const model = $("m-model").value, vectors = await embedTexts(model);
    if (vectors.length < 3) throw new Error("This needs at least 3 texts.");
    const began = performance.now(), found = pca(vectors), query = said("m-query");
    const took = performance.now() - began;
    Object.assign(plane, {points: found.points, vectors, chosen: -1, query: null, groups: [...new Set(texts.chunks.map(part => part.group))]});
    if (query) {
      const {vector} = await embedQuery(query, model, "");
      plane.query = {vector, point: found.project(vector), near: best(vectors.map(v => dot(vector, v)), 5)};
    }
    const all = plane.query ? [...plane.points, plane.query.point] : plane.points, edge = pick => [0, 1].map(i => all.reduce((so, point) => pick(so, point[i]), all[0][i]));
    plane.box = {low: edge(Math.min), high: edge(Math.max)};
    $("m-out").replaceChildren(mapCard(found.shares));
    tellNear();
    drawMap();
    return `${count(vectors.length, "text")} · components in ${took.toFixed(0)} ms`;
  },
};
