// Vectors in the page: cosines, shorter and smaller ones, principal components. Pure functions.
const dot = (a, b) => { let sum = 0; for (let i = 0; i < a.length; i++) sum += a[i] * b[i]; return sum; };
function unit(values) {
  let norm = Math.sqrt(dot(values, values)) || 1;
  return Float32Array.from(values, x => x / norm);
}
// As the server does it: cut first, normalise, then round; int8 by each vector's own largest component.
function shrink(vector, size, type) {
  const cut = unit(vector.subarray(0, size));
  if (type === "float32") return cut;
  if (type === "binary") return unit(cut.map(x => x > 0 ? 1 : -1));
  let top = 0;
  for (const x of cut) top = Math.max(top, Math.abs(x));
  return unit(cut.map(x => Math.round(x * 127 / (top || 1))));
}
const bytesOf = (size, type) => type === "float32" ? 4 * size : type === "int8" ? size : size / 8;
const order = scores => Array.from(scores, (_, i) => i).sort((i, j) => scores[j] - scores[i] || i - j);
// Places of the k highest scores, best first; equal ones in the order given.
function best(scores, k, without = -1) {
  const out = [];
  for (let i = 0; i < scores.length; i++) {
    if (i === without || (out.length === k && scores[i] <= scores[out[k - 1]])) continue;
    let at = out.length;
    while (at && scores[out[at - 1]] < scores[i]) at--;
    out.splice(at, 0, i);
    if (out.length > k) out.pop();
  }
  return out;
}
function spearman(a, b) {
  const n = a.length;
  if (n < 2) return 1;
  const places = scores => { const out = new Float64Array(n); order(scores).forEach((item, rank) => out[item] = rank); return out; };
  const ra = places(a), rb = places(b), mean = (n - 1) / 2;
  let both = 0, whole = 0;
  for (let i = 0; i < n; i++) { both += (ra[i] - mean) * (rb[i] - mean); whole += (ra[i] - mean) ** 2; }
  return both / whole;
}
// The two directions of largest variance: orthogonal iteration on the centred rows. {points: [[x, y]], shares, project}.
function pca(vectors, rounds = 60) {
  const n = vectors.length, d = vectors[0].length, mean = new Float64Array(d);
  for (const v of vectors) for (let i = 0; i < d; i++) mean[i] += v[i] / n;
  const rows = vectors.map(v => Float64Array.from(v, (x, i) => x - mean[i]));
  const total = rows.reduce((sum, row) => sum + dot(row, row), 0) || 1;
  let state = 1;
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647 - 0.5;
  let axes = [0, 1].map(() => Float64Array.from({length: d}, random)), values = [0, 0];
  for (let round = 0; round < rounds; round++) {
    axes = axes.map(axis => {
      const next = new Float64Array(d);
      for (const row of rows) { const along = dot(row, axis); for (let i = 0; i < d; i++) next[i] += along * row[i]; }
      return next;
    });
    const along = dot(axes[0], axes[1]) / (dot(axes[0], axes[0]) || 1);
    for (let i = 0; i < d; i++) axes[1][i] -= along * axes[0][i];
    values = axes.map(axis => Math.sqrt(dot(axis, axis)));
    axes = axes.map((axis, k) => values[k] ? axis.map(x => x / values[k]) : axis);
  }
  const project = v => { const row = Float64Array.from(v, (x, i) => x - mean[i]); return axes.map(axis => dot(row, axis)); };
  return {points: rows.map(row => axes.map(axis => dot(row, axis))), shares: values.map(value => value / total), project};
}
function decode(answer) {
  const rows = [];
  for (const item of answer.data.data) rows[item.index] = new Float32Array(Uint8Array.from(atob(item.embedding), c => c.charCodeAt(0)).buffer);
  return rows;
}
