// Elements, text, numbers, and the data of the page.
const SVG = "http://www.w3.org/2000/svg";

// Characters that show nothing, or that change how others are shown: controls, marks of direction, odd line ends, lone surrogates.
const UNSEEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff0-\\ufffb]" +
    "|[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]",
  "g",
);

function codePoint(character) {
  return "U+" + character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
}

/** Text as nodes, in which what cannot be seen stands as its code point. Never HTML. */
function shown(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(UNSEEN)) {
    nodes.push(document.createTextNode(text.slice(from, match.index)));
    const mark = document.createElement("span");
    mark.className = "unseen";
    mark.textContent = codePoint(match[0]);
    nodes.push(mark);
    from = match.index + match[0].length;
  }
  nodes.push(document.createTextNode(text.slice(from)));
  return nodes;
}

/** A name that may be broken after its underscores. */
function breakable(name) {
  return name.split(/(?<=[_/])/).flatMap((part, number) => (number ? [document.createElement("wbr"), part] : [part]));
}

/** One line of a text, cut to a length. */
function snippet(text, length = 160) {
  const line = text.slice(0, length * 3).replace(/\s+/g, " ").trim();
  return line.length > length ? line.slice(0, length) + "…" : line;
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    if (child instanceof Node) node.append(child);
    else node.append(...shown(String(child)));
  }
  return node;
}

function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** A number with so many decimals, ties to even, as Python writes it. */
function fixed(value, decimals = 3) {
  if (value === null || value === undefined) return "–";
  const exact = value.toFixed(40);
  const end = exact.indexOf(".") + (decimals ? 1 + decimals : 0);
  const cut = exact.slice(0, end);
  const tie = /^\.?50*$/.test(exact.slice(end));
  return tie && /[02468]$/.test(cut) ? cut : value.toFixed(decimals); // toFixed takes a tie away from zero
}

function signed(value, decimals = 3) {
  if (value === null || value === undefined) return "–";
  const text = fixed(value, decimals);
  return text.startsWith("-") ? "−" + text.slice(1) : "+" + text;
}

/** A p-value with two significant digits. */
function pValue(value) {
  return value === null || value === undefined ? "–" : String(Number(value.toPrecision(2)));
}

function whole(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en-US");
}

function percent(part, all) {
  return all ? `${Math.round((100 * part) / all)}%` : "–";
}

function bytes(value) {
  return value ? `${(value / 2 ** 20).toFixed(0)} MiB` : "–";
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

function unique(values) {
  return [...new Set(values)];
}

// ---------------------------------------------------------------------- data
const READ = new Map();

/** A part of the page's data, unpacked when it is first asked for. */
function data(name) {
  if (!READ.has(name)) READ.set(name, unpack(document.getElementById("data-" + name).textContent));
  return READ.get(name);
}

async function unpack(text) {
  const binary = atob(text);
  const packed = new Uint8Array(binary.length);
  for (let place = 0; place < binary.length; place++) packed[place] = binary.charCodeAt(place);
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// ---------------------------------------------------------------------- examples
/** The cells of one method on one task, seeds in order. */
function cellsOf(run, method, task) {
  return run.cells.filter((cell) => cell.method === method && cell.task === task).sort((a, b) => a.seed - b.seed);
}

function entryOf(run, method, task) {
  return run.entries.find((entry) => entry.method === method && entry.task === task);
}

/** Example → its place in each seed's cell and its score averaged over the seeds; those that every seed scored and none adapted on. */
async function groupOf(run, method, task) {
  const cells = cellsOf(run, method, task).filter((cell) => cell.samples);
  const read = await Promise.all(cells.map((cell) => data(cell.samples)));
  const left = new Set(cells.flatMap((cell) => cell.left_out));
  const found = new Map();
  read.forEach((samples, seed) =>
    samples.key.forEach((key, place) => {
      if (samples.score[place] === null || left.has(samples.doc[place])) return;
      if (seed === 0) found.set(key, { doc: samples.doc[place], places: [place], sum: samples.score[place] });
      else if (found.has(key) && found.get(key).places.length === seed) {
        found.get(key).places.push(place);
        found.get(key).sum += samples.score[place];
      }
    }),
  );
  for (const [key, example] of found) {
    if (example.places.length < read.length) found.delete(key);
    else example.score = example.sum / read.length;
  }
  return { cells, read, examples: found, higher: cells.length ? cells[0].higher : true };
}

/** Document → its prompt, choices and gold answer; empty where they were not kept. */
async function documentsOf(cell) {
  const found = new Map();
  if (!cell || !cell.documents) return found;
  const read = await data(cell.documents);
  read.doc_id.forEach((doc, place) => {
    found.set(doc, { prompt: read.prompt[place], choices: read.choices[place], target: read.target[place], images: read.images[place] });
  });
  return found;
}

// ---------------------------------------------------------------------- where one is
/** The view and its settings, as the address has them: #view?name=value. */
function place() {
  const [view, query] = location.hash.slice(1).split(/\?(.*)/s);
  return { view: view || "table", settings: new URLSearchParams(query || "") };
}

function link(view, settings = {}) {
  const query = new URLSearchParams(Object.entries(settings).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return `#${view}${String(query) ? "?" + query : ""}`;
}

/** Change settings of the view without drawing it anew. */
function keep(view, settings) {
  history.replaceState(null, "", link(view, { ...Object.fromEntries(place().settings), ...settings }));
}
