// Examples: a list of a cell's, and the life of one: what was asked, what dispatch said, α, the answer, the verdict and why.

/** A verdict in words, and its kind. */
function verdict(score, higher = true) {
  if (score === null || score === undefined) return ["no score", "even"];
  if (score === 1 && higher) return ["right", "up"];
  if (score === 0 && higher) return ["wrong", "down"];
  return [fixed(score), "even"];
}

function badge(score, higher) {
  const [text, kind] = verdict(score, higher);
  return el("span", { class: `badge ${kind}` }, kind === "up" ? "✓ " : kind === "down" ? "✗ " : "", text);
}

const LONG = 20000;

/** A text of a model or a task, as it is; a very long one is cut until somebody wants all of it. */
function block(title, text, kind = "") {
  const pre = el("pre", { class: `text ${kind}`, dir: "auto", tabindex: 0, "aria-label": title }, text.slice(0, LONG));
  const more = el("button", { type: "button", on: { click: () => { pre.replaceChildren(...shown(text)); more.remove(); } } }, `Show all ${whole(text.length)} characters`);
  return el("div", { class: "block" }, el("h4", {}, title), pre, text.length > LONG ? more : null);
}

/** Shares as bars: label → share, the chosen one marked. */
function shares(title, values, chosen, note) {
  const longest = Math.max(...Object.values(values), 1e-9);
  const lines = Object.entries(values).sort(([, x], [, y]) => y - x);
  return el(
    "div",
    { class: "block" },
    el("h4", {}, title),
    note ? el("p", { class: "hint" }, note) : null,
    el("table", { class: "shares" }, el("tbody", {}, lines.map(([name, value]) =>
      el("tr", { class: name === chosen ? "chosen" : null }, el("th", { scope: "row" }, name, name === chosen ? " ✓" : ""), el("td", { class: "number" }, fixed(value)), el("td", { class: "fill" }, bar([{ value: Math.max(0, value), kind: "c0" }], longest)))))),
  );
}

/** The choices with their log-likelihoods, the gold one and the likeliest marked; null where the answer is text. */
function choicesBlock(document_, response) {
  if (!document_ || !document_.choices.length) return null;
  let given = null;
  try { given = JSON.parse(response); } catch { return null; }
  if (!Array.isArray(given) || given.length !== document_.choices.length) return null;
  const values = given.map((each) => (Array.isArray(each) ? each[0] : each));
  if (!values.every((value) => typeof value === "number")) return null;
  const best = values.indexOf(Math.max(...values));
  const gold = /^\d+$/.test(document_.target) ? Number(document_.target) : document_.choices.findIndex((choice) => choice.trim() === document_.target.trim());
  return el("div", { class: "block" }, el("h4", {}, "Choices and their log-likelihoods"), el("table", { class: "shares" }, el("tbody", {}, document_.choices.map((choice, number) =>
    el("tr", { class: number === best ? "chosen" : null }, el("th", { scope: "row" }, choice), el("td", { class: "number" }, fixed(values[number], 2)), el("td", {}, [number === best ? "likeliest" : "", number === gold ? "gold" : ""].filter(Boolean).join(", ")))))));
}

/** α of a cell: one for each expert, or the mean over the matrices where each has its own. */
function alphasOf(cell) {
  if (!cell.alphas || !cell.alpha_order || !cell.alphas.length) return null;
  const rows = Array.isArray(cell.alphas[0]) ? cell.alphas : [cell.alphas];
  const named = cell.alpha_order.map((name, expert) => [name, mean(rows.map((each) => each[expert] ?? 0))]);
  return { values: Object.fromEntries(named), rows: rows.length };
}

function whyText(cell, samples, at, asked) {
  const parts = [];
  const metric = cell.metric ?? "score";
  const score = samples.score[at];
  parts.push(score === null ? `${metric} is not a number for this example, which is left out of the score.` : `${metric} = ${fixed(score)}.`);
  if (samples.why && samples.why[at]) parts.push(`The grader says: ${samples.why[at]}.`);
  else if (asked && asked.target && !asked.choices.length && score !== null) parts.push(score === 1 ? "The answer, as graded, agrees with the gold answer." : "The answer, as graded, does not agree with the gold answer.");
  if (cell.left_out.includes(samples.doc[at])) parts.push("The method adapted on this document, so it counts on neither side.");
  return parts.join(" ");
}

/** One example of one cell, from the question to the verdict. */
async function lifeOf(run, cell, at, title) {
  const samples = await data(cell.samples);
  const asked = (await documentsOf(cell)).get(samples.doc[at]);
  const field = (name) => (samples[name] ? samples[name][at] : null);
  const alphas = alphasOf(cell);
  const label = field("dispatch");
  const experts = cell.experts.length === 1 ? `expert ${cell.experts[0]}` : "";
  const response = field("response") ?? "";
  const choices = choicesBlock(asked, response);
  const metrics = field("metrics");
  return el(
    "article",
    { class: "life" },
    el("h3", {}, title ?? cell.method, " ", badge(samples.score[at], cell.higher)),
    el("p", { class: "hint" }, `document ${samples.doc[at]} of ${cell.task}, ${cell.method}, seed ${cell.seed}${experts ? `, ${experts}` : ""}`),
    asked ? block("Prompt", asked.prompt, "prompt") : el("p", { class: "hint" }, "The prompt was not kept: this row is of an older release."),
    asked && asked.images ? el("p", { class: "hint" }, `With ${asked.images} picture${asked.images > 1 ? "s" : ""}, not kept here.`) : null,
    field("probabilities") ? shares("Dispatch", field("probabilities"), label, cell.mix === "soft" ? "Its probabilities are the α of this example." : `It chose ${label}.`) : label ? el("p", {}, `Dispatch chose ${label}; its probabilities were not kept.`) : null,
    alphas ? shares("α", alphas.values, null, alphas.rows > 1 ? `Mean over ${alphas.rows} matrices.` : cell.adaptation ? `Searched on ${cell.adaptation.examples} examples of the ${cell.adaptation.split} split (${cell.adaptation.metric} ${fixed(cell.adaptation.score)}).` : null) : null,
    choices,
    field("raw") ? block("Answer, as the model wrote it", field("raw")) : null,
    choices ? null : block(field("raw") ? "Answer, as it was graded" : "Answer", response, samples.score[at] === 1 ? "right" : ""),
    asked && asked.target && !choices ? block("Gold answer", asked.target) : null,
    el("p", { class: "why" }, whyText(cell, samples, at, asked)),
    metrics ? el("p", { class: "hint" }, Object.entries(metrics).map(([name, value]) => `${name} ${fixed(value)}`).join(" · ")) : null,
  );
}

/** What every method and seed said to the same document. */
async function everyAnswer(run, task, key, doc) {
  const cells = run.methods.flatMap((method) => cellsOf(run, method, task)).filter((cell) => cell.samples);
  const read = await Promise.all(cells.map((cell) => data(cell.samples)));
  const lines = cells.flatMap((cell, number) => {
    const at = read[number].key.indexOf(key);
    if (at < 0) return [];
    const dispatch = read[number].dispatch ? read[number].dispatch[at] : null;
    const to = link("samples", { task, method: cell.method, seed: cell.seed, doc });
    return [el("tr", {}, el("th", { scope: "row" }, el("a", { href: to }, `${cell.method}, seed ${cell.seed}`)), el("td", {}, badge(read[number].score[at], cell.higher)), el("td", { class: "answer" }, dispatch ? el("span", { class: "who" }, `${dispatch}: `) : null, snippet(read[number].response?.[at] ?? "", 100)))];
  });
  return el("div", { class: "block" }, el("h4", {}, "Every method on this example"), el("table", { class: "answers" }, el("tbody", {}, lines)));
}

async function samplesView(run, settings) {
  const cells = run.cells.filter((cell) => cell.samples);
  if (!cells.length) return el("section", {}, el("p", {}, "No examples were kept."));
  const pick = (names, value) => (names.includes(value) ? value : names[0]);
  const tasks = run.tasks.filter((task) => cells.some((cell) => cell.task === task));
  const task = pick(tasks, settings.get("task"));
  const methods = run.methods.filter((method) => cells.some((cell) => cell.task === task && cell.method === method));
  const method = pick(methods, settings.get("method"));
  const seeds = cellsOf(run, method, task).filter((cell) => cell.samples).map((cell) => String(cell.seed));
  const seed = pick(seeds, settings.get("seed"));
  const cell = cellsOf(run, method, task).find((each) => String(each.seed) === seed);
  const samples = await data(cell.samples);
  const documents = await documentsOf(cell);
  const go = (changes) => { location.hash = link("samples", { task, method, seed, ...changes }); };
  const state = { words: settings.get("search") || "", only: settings.get("only") || "all" };
  const detail = el("div", { class: "detail", tabindex: -1 }, el("p", { class: "hint" }, "Choose an example: it opens here."));
  const count = el("p", { class: "count", role: "status" });
  let places = [];

  const list = longList({
    label: `examples of ${method} on ${task}`,
    height: 60,
    render: (place) => {
      const at = places[place];
      const asked = documents.get(samples.doc[at])?.prompt;
      const label = samples.dispatch?.[at];
      return [
        el("div", { class: "line" }, badge(samples.score[at], cell.higher), el("b", {}, ` #${samples.doc[at]} `), asked ? snippet(asked.slice(-400)) : ""),
        el("div", { class: "line two" }, label ? el("span", { class: "who" }, `${label}: `) : null, snippet(samples.response?.[at] ?? "", 120)),
      ];
    },
    open: async (place) => {
      const at = places[place];
      keep("samples", { task, method, seed, doc: samples.doc[at] });
      detail.replaceChildren(await lifeOf(run, cell, at), await everyAnswer(run, task, samples.key[at], samples.doc[at]));
      detail.scrollTop = 0;
    },
  });

  function choose() {
    const words = state.words.toLowerCase();
    const wanted = { all: () => true, right: (score) => score === 1, wrong: (score) => score === 0, other: (score) => score !== 0 && score !== 1 }[state.only];
    places = samples.score.map((_, at) => at).filter((at) => {
      if (!wanted(samples.score[at])) return false;
      if (!words) return true;
      const asked = documents.get(samples.doc[at])?.prompt ?? "";
      return [`#${samples.doc[at]}`, samples.response?.[at], samples.raw?.[at], samples.dispatch?.[at], asked].some((text) => text && text.toLowerCase().includes(words));
    });
    count.replaceChildren(...shown(`${whole(places.length)} of ${whole(samples.score.length)} examples`));
    list.show(places.length);
  }

  choose();
  const doc = settings.get("doc");
  const wanted = doc === null ? -1 : places.findIndex((at) => String(samples.doc[at]) === doc);
  if (wanted >= 0) requestAnimationFrame(() => list.choose(wanted));
  const only = [["all", "all"], ["right", "right"], ["wrong", "wrong"], ["other", "other scores"]].map(([value, title]) => el("option", { value, selected: value === state.only }, title));
  return el(
    "section",
    {},
    el(
      "div",
      { class: "controls" },
      chooser("Task", "task", tasks, task, (value) => go({ task: value })),
      chooser("Method", "method", methods, method, (value) => go({ method: value })),
      seeds.length > 1 ? chooser("Seed", "seed", seeds, seed, (value) => go({ seed: value })) : null,
      el("label", {}, "Show ", el("select", { id: "only", on: { change: (event) => { state.only = event.target.value; keep("samples", { only: state.only }); choose(); } } }, only)),
      el("label", { class: "grow" }, "Search ", el("input", { type: "search", id: "search", value: state.words, on: { input: (event) => { state.words = event.target.value; choose(); } } })),
      count,
    ),
    el("div", { class: "columns" }, list.node, detail),
  );
}
