// The table: methods by tasks, or every number of every cell; sorted, filtered, seeds folded or shown.

const NUMBERS = [
  ["method", "method", (e) => e.method],
  ["task", "task", (e) => e.task],
  ["metric", "metric", (e) => e.metric ?? "–"],
  ["score", "score", (e) => fixed(e.score)],
  ["stderr", "± (standard error)", (e) => fixed(e.stderr)],
  ["n", "n", (e) => whole(e.n)],
  ["clusters", "clusters", (e) => whole(e.clusters)],
  ["seeds", "seeds", (e) => e.seeds.join(", ")],
  ["seed_std", "sd between seeds", (e) => fixed(e.seed_std)],
  ["gain", "gain over base", (e) => signed(e.gain)],
  ["low", "95% interval", (e) => (e.low === null || e.low === undefined ? "–" : `${signed(e.low)} to ${signed(e.high)}`)],
  ["p", "p (Holm)", (e) => pValue(e.p)],
  ["smallest", "could show", (e) => (e.smallest === null ? (e.p === null ? "–" : "nothing") : fixed(e.smallest))],
  ["test", "test", (e) => e.test ?? "–"],
  ["seconds", "seconds", (e) => fixed(e.seconds, 1)],
  ["first_pass_seconds", "first pass, s", (e) => fixed(e.first_pass_seconds, 1)],
  ["second_pass_seconds", "second pass, s", (e) => fixed(e.second_pass_seconds, 1)],
  ["trainable_parameters", "trainable parameters", (e) => whole(e.trainable_parameters)],
  ["peak_memory_bytes", "peak memory", (e) => bytes(e.peak_memory_bytes)],
];

function isBetter(run, entry) {
  return run.better.some(([method, task]) => method === entry.method && task === entry.task);
}

/** A score with its error, and what it gains over the base. */
function scoreCell(run, entry) {
  const better = isBetter(run, entry);
  const error = entry.stderr !== null ? ` ± ${fixed(entry.stderr)}` : entry.n === 1 || entry.clusters === 1 ? " ± N/A" : "";
  const to = link("samples", { method: entry.method, task: entry.task });
  const parts = [
    el("a", { href: to, class: better ? "score better" : "score", title: `examples of ${entry.method} on ${entry.task}` }, fixed(entry.score)),
    el("span", { class: "error" }, `${error} (n=${entry.n}${entry.clusters ? ` in ${entry.clusters}` : ""})`),
  ];
  if (entry.gain === null || entry.gain === undefined) return parts;
  const worse = entry.significant && entry.gain < 0;
  const kind = better ? "up" : worse ? "down" : "even";
  const mark = better ? "▲ " : worse ? "▼ " : "";
  const range = entry.low === null ? "" : `, 95% interval ${signed(entry.low)} to ${signed(entry.high)}`;
  const about = `gain over the base ${signed(entry.gain)}${range}, p = ${pValue(entry.p)} (${entry.test})`;
  const against = link("compare", { a: entry.method, b: "base", task: entry.task });
  return [...parts, el("a", { class: `gain ${kind}`, href: against, title: about, "aria-label": about }, mark, signed(entry.gain))];
}

function matches(words, text) {
  return words.every((word) => text.toLowerCase().includes(word));
}

/** Lines in the order of a column; those that have no value stand last. */
function sorted(items, value, down) {
  const known = items.filter((item) => value(item) !== null && value(item) !== undefined);
  const order = (a, b) => (typeof value(a) === "number" ? value(a) - value(b) : String(value(a)).localeCompare(String(value(b))));
  known.sort((a, b) => (down ? -order(a, b) : order(a, b)));
  return [...known, ...items.filter((item) => !known.includes(item))];
}

function headers(columns, sort, change) {
  return el(
    "tr",
    {},
    columns.map(({ key, title, number }) => {
      const now = sort.by === key ? (sort.down ? "descending" : "ascending") : "none";
      const arrow = sort.by === key ? (sort.down ? " ↓" : " ↑") : "";
      const button = el("button", { type: "button", class: "sort", "data-sort": key, on: { click: () => change(key) } }, breakable(title), arrow);
      return el("th", { scope: "col", "aria-sort": now, class: number ? "number" : null }, button);
    }),
  );
}

/** Methods by tasks, as the Markdown has it. */
function wideTable(run, chosen, change) {
  const tasks = chosen.tasks;
  const score = (method, task) => entryOf(run, method, task)?.score ?? null;
  const totals = (method, place) => run.totals[method][place];
  const amount = (text) => (text === "–" ? null : Number(text.replace(/,/g, "").split(" ")[0]));
  const columns = [
    { key: "method", title: "method", value: (method) => method },
    ...tasks.map((task) => ({ key: `task:${task}`, title: task, number: true, value: (method) => score(method, task) })),
    { key: "mean", title: "mean", number: true, value: (method) => amount(totals(method, 0)) },
    { key: "seconds", title: "seconds a cell", number: true, value: (method) => amount(totals(method, 1)) },
    { key: "parameters", title: "trainable parameters", number: true, value: (method) => amount(totals(method, 2)) },
  ];
  const by = columns.find((column) => column.key === chosen.sort.by);
  const methods = by ? sorted(chosen.methods, by.value, chosen.sort.down) : chosen.methods;
  const rows = methods.flatMap((method) => [
    el(
      "tr",
      { "data-method": method },
      el("th", { scope: "row" }, method),
      tasks.map((task) => {
        const entry = entryOf(run, method, task);
        const failed = run.failures.filter((failure) => failure.method === method && failure.task === task);
        const fault = failed.length ? el("span", { class: "down", title: failed[0].error }, `${failed.length} failed`) : null;
        return el("td", { class: "number cell", "data-label": task }, entry ? scoreCell(run, entry) : fault ? null : "–", fault);
      }),
      ["mean", "seconds a cell", "trainable parameters"].map((title, part) =>
        el("td", { class: "number plain", "data-label": title }, totals(method, part)),
      ),
    ),
    ...(chosen.seeds ? seedRows(run, method, tasks) : []),
  ]);
  return { head: headers(columns, chosen.sort, change), rows };
}

/** One line for each seed of a method. */
function seedRows(run, method, tasks) {
  const seeds = unique(run.cells.filter((cell) => cell.method === method).map((cell) => cell.seed)).sort((a, b) => a - b);
  return seeds.map((seed) =>
    el(
      "tr",
      { class: "seed", "data-seed": seed },
      el("th", { scope: "row" }, `seed ${seed}`),
      tasks.map((task) => {
        const cell = cellsOf(run, method, task).find((each) => each.seed === seed);
        if (!cell) return el("td", { class: "number", "data-label": task }, "–");
        const error = cell.stderr === null ? "" : ` ± ${fixed(cell.stderr)}`;
        const to = link("samples", { method, task, seed });
        return el("td", { class: "number cell", "data-label": task }, el("a", { class: "score", href: to }, fixed(cell.score)), el("span", { class: "error" }, error));
      }),
      el("td", { class: "number plain blank" }),
      el("td", { class: "number plain", "data-label": "seconds a cell" }, fixed(mean(run.cells.filter((cell) => cell.method === method && cell.seed === seed).map((cell) => cell.seconds)), 1)),
      el("td", { class: "number plain blank" }),
    ),
  );
}

/** A line for each method on each task, with every number of the table. */
function longTable(run, chosen, change) {
  const there = NUMBERS.filter(([key]) => run.entries.some((entry) => entry[key] !== undefined && entry[key] !== null));
  const text = new Set(["method", "task", "metric", "test", "seeds"]);
  const columns = there.map(([key, title]) => ({ key, title, number: !text.has(key) }));
  let entries = run.entries.filter((entry) => chosen.methods.includes(entry.method) && chosen.tasks.includes(entry.task));
  if (there.some(([key]) => key === chosen.sort.by)) {
    entries = sorted(entries, (entry) => (Array.isArray(entry[chosen.sort.by]) ? entry.seeds.length : entry[chosen.sort.by]), chosen.sort.down);
  }
  const line = (entry, kind) =>
    el(
      "tr",
      { class: kind },
      there.map(([key, title, write]) =>
        el(key === "method" ? "th" : "td", { scope: key === "method" ? "row" : null, class: text.has(key) ? null : "number", "data-label": title }, key === "score" && !kind && isBetter(run, entry) ? el("strong", {}, write(entry)) : write(entry)),
      ),
    );
  const rows = entries.flatMap((entry) => {
    const cells = chosen.seeds ? cellsOf(run, entry.method, entry.task) : [];
    const blank = Object.fromEntries(NUMBERS.map(([key]) => [key, null]));
    return [line(entry, null), ...cells.map((cell) => line({ ...blank, ...cell, seeds: [cell.seed] }, "seed"))];
  });
  return { head: headers(columns, chosen.sort, change), rows };
}

function tableView(run, settings) {
  const state = { words: settings.get("filter") || "", seeds: settings.get("seeds") === "1", every: settings.get("every") === "1" };
  const sort = { by: settings.get("sort") || "", down: settings.get("down") === "1" };
  const table = el("table", { class: "board" });
  const count = el("p", { class: "count", role: "status" });

  function change(key) {
    if (sort.by !== key) Object.assign(sort, { by: key, down: !["method", "task", "metric", "test"].includes(key) });
    else if (sort.down === !["method", "task", "metric", "test"].includes(key)) sort.down = !sort.down;
    else Object.assign(sort, { by: "", down: false });
    draw(key);
  }

  function draw(focus) {
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    const named = (names) => words.filter((word) => names.some((name) => name.toLowerCase().includes(word)));
    const byMethod = named(run.methods);
    const byTask = named(run.tasks);
    const unknown = words.filter((word) => !byMethod.includes(word) && !byTask.includes(word));
    const methods = unknown.length ? [] : run.methods.filter((name) => !byMethod.length || byMethod.some((word) => matches([word], name)));
    const tasks = unknown.length ? [] : run.tasks.filter((name) => !byTask.length || byTask.every((word) => matches([word], name)));
    const drawn = (state.every ? longTable : wideTable)(run, { methods, tasks, sort, seeds: state.seeds }, change);
    table.className = state.every ? "board every" : "board";
    table.replaceChildren(
      el("caption", {}, state.every ? "Every number of every cell" : "Score ± standard error, and the gain over the base"),
      el("thead", {}, drawn.head),
      el("tbody", {}, drawn.rows),
    );
    count.replaceChildren(...shown(methods.length && tasks.length ? `${methods.length} of ${run.methods.length} methods, ${tasks.length} of ${run.tasks.length} tasks` : "Nothing has such a name."));
    keep("table", { filter: state.words, seeds: state.seeds ? "1" : "", every: state.every ? "1" : "", sort: sort.by, down: sort.down ? "1" : "" });
    if (focus) table.querySelector(`[data-sort="${CSS.escape(focus)}"]`)?.focus();
  }

  const box = (label, name) =>
    el("label", {}, el("input", { type: "checkbox", id: `table-${name}`, checked: state[name], on: { change: (event) => { state[name] = event.target.checked; draw(); } } }), label);
  const filter = el("input", { type: "search", id: "filter", value: state.words, placeholder: "methods and tasks", on: { input: (event) => { state.words = event.target.value; draw(); } } });
  const orders = el("select", { id: "order", on: { change: (event) => { const [by, down] = event.target.value.split("|"); Object.assign(sort, { by, down: down === "1" }); draw(); } } },
    el("option", { value: "|" }, "as printed"), el("option", { value: "mean|1" }, "best mean first"), run.tasks.map((task) => el("option", { value: `task:${task}|1` }, `best on ${task} first`)), el("option", { value: "seconds|" }, "fastest first"));
  draw();
  return el(
    "section",
    {},
    el("div", { class: "controls" }, el("label", { class: "grow" }, "Filter ", filter), el("label", { class: "narrow-only" }, "Order ", orders), box("seeds", "seeds"), box("every number", "every"), count),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of scores" }, table),
    el("h2", {}, "Notes"),
    el("ul", { class: "notes" }, [
      ...run.notes.map((note) => el("li", {}, note)),
      ...run.failures.map((cell) => el("li", { class: "down" }, `FAILED: ${cell.method} on ${cell.task}, seed ${cell.seed}: ${cell.error}`)),
    ]),
    run.failures.length ? el("p", { class: "down" }, `${run.failures.length} cells failed.`) : null,
  );
}
