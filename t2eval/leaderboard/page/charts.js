// Learning curves, confusion of dispatch, α, and the seconds of both passes.

function learningView(run) {
  if (!run.learning.length) return el("section", {}, el("p", {}, "No training runs are at hand: neither the folder nor its manifest names experts or baselines with their records."));
  const drawn = run.learning.filter((each) => each.validations.length > 1 || Object.keys(each.batches).length);
  const charts = drawn.map((each) => {
    const name = `${each.name}, seed ${each.seed}`;
    const figure = ["accuracy", "reward", "loss"].find((key) => each.batches[key]);
    const start = each.validations.length && each.validations[0][0] === 0 ? each.validations[0][1] : null;
    const series = [
      ...(figure ? [{ name: `batch ${figure}`, points: each.batches[figure], thin: true, color: 7 }] : []),
      ...(each.validations.length ? [{ name: "validation", points: each.validations, dots: true, color: 0 }] : []),
    ];
    const best = each.validations.find(([step]) => step === each.chosen_step);
    const marks = best ? [{ x: best[0], y: best[1], label: `chosen: step ${best[0]}, ${fixed(best[1])}` }] : [];
    return el("figure", {}, el("figcaption", {}, el("b", {}, name), each.finished ? "" : " (not finished)"), lines({ series, marks, level: start, label: `learning curve of ${name}`, xLabel: "step" }),
      el("p", { class: "hint" }, `Line: validation${each.metric ? ` (${each.metric})` : ""}; thin: ${figure ? `batch ${figure}` : "no batches"}${start === null ? "" : "; dashed: the base"}${best ? "; ring: the chosen checkpoint" : ""}.`));
  });
  const recorded = run.learning.filter((each) => each.scores || each.problem);
  const score = (each, when, split) => each.scores?.[when]?.[split];
  const split = (each) => (score(each, "after", "test") ? "test" : "validation");
  const written = (found) => (found ? `${fixed(found.score)}${found.stderr === null ? "" : ` ± ${fixed(found.stderr)}`}` : "–");
  const titles = ["run", "seed", "task", "before", "after", "split", "n", "chosen step", "seconds"];
  const table = el("table", { class: "board" }, el("caption", {}, "Before and after training"), el("thead", {}, el("tr", {}, titles.map((title) => el("th", { scope: "col" }, title)))), el("tbody", {}, recorded.map((each) =>
    el("tr", {}, el("th", { scope: "row" }, each.name), el("td", { class: "number", "data-label": "seed" }, each.seed), el("td", { "data-label": "task" }, each.problem ?? each.task),
      el("td", { class: "number", "data-label": "before" }, written(score(each, "before", split(each)))), el("td", { class: "number", "data-label": "after" }, written(score(each, "after", split(each)))), el("td", { "data-label": "split" }, split(each)),
      el("td", { class: "number", "data-label": "n" }, whole(score(each, "after", split(each))?.n)), el("td", { class: "number", "data-label": "chosen step" }, whole(each.chosen_step)), el("td", { class: "number", "data-label": "seconds" }, fixed(each.seconds ?? null, 0))))));
  const missing = run.learning.length - drawn.length;
  return el("section", {}, charts.length ? el("div", { class: "gallery" }, charts) : null, missing ? el("p", { class: "hint" }, `${missing} of ${run.learning.length} runs have a record and no log, so no curve.`) : null, recorded.length ? el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Training runs" }, table) : null);
}

function dispatchView(run) {
  const methods = run.methods.filter((method) => run.cells.some((cell) => cell.method === method && cell.dispatch));
  if (!methods.length) return el("section", {}, el("p", {}, "No method of this benchmark dispatches."));
  const labels = unique([...Object.values(run.labels), ...run.cells.flatMap((cell) => Object.keys(cell.dispatch || {}))]);
  const tables = methods.map((method) => {
    const rows = run.tasks.flatMap((task) => {
      const cells = cellsOf(run, method, task).filter((cell) => cell.dispatch);
      if (!cells.length) return [];
      const counts = Object.fromEntries(labels.map((label) => [label, cells.reduce((sum, cell) => sum + (cell.dispatch[label] || 0), 0)]));
      const all = Object.values(counts).reduce((sum, count) => sum + count, 0);
      const own = run.labels[task];
      const squares = labels.map((label) => {
        const cell = el("td", { class: `number share${label === own ? " own" : ""}`, "data-label": label }, el("b", {}, percent(counts[label], all)), el("span", { class: "error" }, ` ${counts[label]}`));
        cell.style.setProperty("--share", all ? counts[label] / all : 0);
        return cell;
      });
      return [el("tr", {}, el("th", { scope: "row" }, task, own ? el("span", { class: "error" }, ` (${own})`) : ""), squares, el("td", { class: "number", "data-label": "decisions" }, all))];
    });
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Dispatch by ${method}` }, el("table", { class: "board confusion" }, el("caption", {}, `${method}: the label given, by task`), el("thead", {}, el("tr", {}, ["task", ...labels, "decisions"].map((title, number) => el("th", { scope: "col", class: number ? "number" : null }, title)))), el("tbody", {}, rows)));
  });
  return el("section", {}, el("p", { class: "hint" }, "Decisions of all seeds together. An outlined square is the task's own skill."), tables);
}

function alphaView(run) {
  const cells = run.cells.filter((cell) => alphasOf(cell) && cell.alpha_order.length > 1).sort((x, y) => run.tasks.indexOf(x.task) - run.tasks.indexOf(y.task) || x.seed - y.seed);
  if (!cells.length) return el("section", {}, el("p", {}, "No method of this benchmark mixes experts by α."));
  const methods = unique(cells.map((cell) => cell.method));
  const tables = methods.map((method) => {
    const mine = cells.filter((cell) => cell.method === method);
    const names = unique(mine.flatMap((cell) => cell.alpha_order));
    const longest = Math.max(1e-9, ...mine.flatMap((cell) => Object.values(alphasOf(cell).values).map(Math.abs)));
    const rows = mine.map((cell) => {
      const { values, rows: matrices } = alphasOf(cell);
      const found = cell.adaptation;
      return el("tr", {}, el("th", { scope: "row" }, cell.task, matrices > 1 ? ` (mean of ${matrices} matrices)` : ""), el("td", { class: "number", "data-label": "seed" }, cell.seed),
        names.map((name) => el("td", { class: "number alpha", "data-label": name }, name in values ? [fixed(values[name], 2), bar([{ value: Math.abs(values[name]), kind: values[name] < 0 ? "c3" : "c0" }], longest)] : "–")),
        el("td", { class: "number", "data-label": "on" }, found ? `${fixed(found.score)} (${found.examples} of ${found.split})` : "–"));
    });
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Alphas of ${method}` }, el("table", { class: "board" }, el("caption", {}, `${method}: α of each expert`), el("thead", {}, el("tr", {}, ["task", "seed", ...names, "score on the adaptation examples"].map((title, number) => el("th", { scope: "col", class: number ? "number" : null }, title)))), el("tbody", {}, rows)));
  });
  return el("section", {}, tables);
}

function secondsView(run, settings) {
  const task = run.tasks.includes(settings.get("task")) ? settings.get("task") : "";
  const entries = run.entries.filter((entry) => !task || entry.task === task);
  const rows = run.methods.flatMap((method) => {
    const mine = entries.filter((entry) => entry.method === method);
    if (!mine.length) return [];
    const of = (key) => mean(mine.map((entry) => entry[key]).filter((value) => value !== null));
    return [{ method, first: of("first_pass_seconds"), second: of("second_pass_seconds"), seconds: of("seconds"), memory: Math.max(...mine.map((entry) => entry.peak_memory_bytes || 0)) }];
  });
  const longest = Math.max(1e-9, ...rows.map((row) => Math.max(row.seconds, (row.first || 0) + (row.second || 0))));
  const body = rows.map((row) =>
    el("tr", {}, el("th", { scope: "row" }, row.method), el("td", { class: "fill wide", "data-label": "" }, bar([{ value: row.first || 0, kind: "c1" }, { value: row.second || 0, kind: "c0" }], longest)),
      el("td", { class: "number", "data-label": "first pass, s" }, fixed(row.first, 1)), el("td", { class: "number", "data-label": "second pass, s" }, fixed(row.second, 1)), el("td", { class: "number", "data-label": "cell, s" }, fixed(row.seconds, 1)), el("td", { class: "number", "data-label": "peak memory" }, bytes(row.memory))));
  return el(
    "section",
    {},
    el("div", { class: "controls" }, el("label", {}, "Task ", el("select", { id: "task", on: { change: (event) => { location.hash = link("seconds", { task: event.target.value }); } } }, el("option", { value: "" }, "mean of all"), run.tasks.map((name) => el("option", { value: name, selected: name === task }, name))))),
    el("ul", { class: "legend" }, el("li", {}, el("span", { class: "swatch c1", "aria-hidden": "true" }), "first pass (dispatch, search)"), el("li", {}, el("span", { class: "swatch c0", "aria-hidden": "true" }), "second pass (the answers)")),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Seconds" }, el("table", { class: "board" }, el("caption", {}, `Seconds a cell${task ? ` of ${task}` : ", mean over the tasks"}`), el("thead", {}, el("tr", {}, ["method", "", "first pass, s", "second pass, s", "cell, s", "peak memory"].map((title, number) => el("th", { scope: "col", class: number > 1 ? "number" : null }, title)))), el("tbody", {}, body))),
  );
}
