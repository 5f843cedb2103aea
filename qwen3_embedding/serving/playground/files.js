// A dropped file to chunks of text: [{text, group}]. Pure functions; nothing leaves the page here.
const MOST_CHUNKS = 5000, MOST_BYTES = 50e6;

// RFC 4180: quoted fields may hold separators, doubled quotes and line ends.
function parseCsv(text, separator) {
  const rows = [];
  let row = [], field = "", quoted = false;
  const source = text.replace(/\r\n?/g, "\n");
  for (let i = 0; i < source.length; i++) {
    const c = source[i];
    if (quoted) {
      if (c !== '"') field += c;
      else if (source[i + 1] === '"') { field += '"'; i++; }
      else quoted = false;
    } else if (c === '"' && field === "") quoted = true;
    else if (c === separator) { row.push(field); field = ""; }
    else if (c === "\n") { row.push(field); rows.push(row); row = []; field = ""; }
    else field += c;
  }
  if (field !== "" || row.length) { row.push(field); rows.push(row); }
  return rows.filter(cells => cells.some(cell => cell.trim()));
}
// A table: {columns, rows: [{column: value}]}; the first line names the columns.
function table(text, separator) {
  const [head, ...body] = parseCsv(text, separator);
  if (!head || !body.length) throw new Error("the table has no rows below its first line, which names the columns");
  const columns = head.map((name, i) => name.trim() || `column ${i + 1}`);
  return {columns, rows: body.map(cells => Object.fromEntries(columns.map((name, i) => [name, cells[i] || ""])))};
}
function jsonl(text) {
  const whole = text.trim(), out = [];
  const values = whole.startsWith("[") ? JSON.parse(whole) : whole.split("\n").filter(line => line.trim()).map((line, i) => {
    try { return JSON.parse(line); } catch { throw new Error(`line ${i + 1} is not JSON`); }
  });
  for (const [i, value] of values.entries()) {
    if (typeof value === "string") out.push({text: value});
    else if (value && typeof value === "object") out.push(Object.fromEntries(Object.entries(value).filter(([, v]) => ["string", "number"].includes(typeof v)).map(([k, v]) => [k, String(v)])));
    else throw new Error(`record ${i + 1} is neither a string nor an object`);
  }
  return {columns: [...new Set(out.flatMap(row => Object.keys(row)))], rows: out};
}
// The column that looks like the text: by name, else the longest on average.
function textColumn({columns, rows}) {
  for (const name of ["text", "content", "contents", "body", "passage", "document", "abstract", "description", "sentence"]) {
    const found = columns.find(column => column.toLowerCase() === name);
    if (found) return found;
  }
  const length = column => rows.slice(0, 200).reduce((sum, row) => sum + (row[column] || "").length, 0);
  return columns.reduce((a, b) => length(b) > length(a) ? b : a);
}
const groupColumn = ({columns}) => columns.find(column => /^(label|category|class|group|topic|language|lang|source|type)$/i.test(column));

// Paragraphs joined up to `size` characters; a longer one is cut at sentence ends, or at spaces where there are none.
function chunk(text, size) {
  const paragraphs = text.split(/\n\s*\n/).map(part => part.trim()).filter(Boolean);
  if (!size) return paragraphs;
  const out = [];
  let now = "";
  const add = (part, glue) => {
    if (now && now.length + glue.length + part.length > size) { out.push(now); now = ""; }
    now = now ? now + glue + part : part;
  };
  for (const paragraph of paragraphs) {
    if (paragraph.length <= size) { add(paragraph, "\n\n"); continue; }
    let first = true;
    for (const sentence of paragraph.match(/[^.!?。！？]+(?:[.!?。！？]+["'”’)\]]*\s*|$)/g) || [paragraph])
      for (const piece of pieces(sentence.trim(), size)) { add(piece, first ? "\n\n" : " "); first = false; }
  }
  if (now) out.push(now);
  return out;
}
function pieces(sentence, size) {
  const out = [];
  while (sentence.length > size) {
    let at = sentence.lastIndexOf(" ", size);
    if (at < size / 2) at = /[\ud800-\udbff]/.test(sentence[size - 1]) ? size - 1 : size;
    out.push(sentence.slice(0, at).trim());
    sentence = sentence.slice(at).trim();
  }
  return sentence ? [...out, sentence] : out;
}
// Markdown by headings: each chunk knows the ones above it.
function markdown(text, size) {
  const out = [], above = [];
  let body = [], fenced = false;
  const flush = () => {
    const title = above.filter(Boolean).join(" › ");
    for (const part of chunk(body.join("\n"), size)) out.push({text: title ? `${title}\n${part}` : part, group: above[0] || ""});
    body = [];
  };
  for (const line of text.replace(/\r\n?/g, "\n").split("\n")) {
    if (/^\s*(```|~~~)/.test(line)) fenced = !fenced;
    const heading = !fenced && line.match(/^(#{1,6})\s+(.*?)\s*#*$/);
    if (!heading) { body.push(line); continue; }
    flush();
    above.length = Math.min(above.length, heading[1].length - 1);
    while (above.length < heading[1].length - 1) above.push("");
    above.push(heading[2]);
  }
  flush();
  return out;
}
function kindOf(name) {
  const end = name.toLowerCase().split(".").pop();
  return {md: "md", markdown: "md", csv: "csv", tsv: "tsv", jsonl: "jsonl", ndjson: "jsonl", json: "jsonl"}[end] || "txt";
}
// {chunks, columns?, column?} of a file's text.
function chunksOf(name, text, size, column) {
  const kind = kindOf(name);
  if (kind === "md") return {chunks: markdown(text, size)};
  if (kind === "txt") return {chunks: chunk(text.replace(/\r\n?/g, "\n"), size).map(part => ({text: part, group: ""}))};
  const whole = kind === "jsonl" ? jsonl(text) : table(text, kind === "tsv" ? "\t" : ",");
  const chosen = whole.columns.includes(column) ? column : textColumn(whole), group = groupColumn(whole), title = whole.columns.find(name => /^(title|heading)$/i.test(name));
  const chunks = whole.rows.flatMap(row => {
    const head = title && title !== chosen && row[title] ? row[title] + "\n" : "";
    return (size ? chunk(row[chosen] || "", size) : [(row[chosen] || "").trim()]).filter(Boolean).map(part => ({text: head + part, group: group && group !== chosen ? row[group] || "" : ""}));
  });
  return {chunks, columns: whole.columns, column: chosen};
}
