// History: several runs of a benchmark, and the commits between them.

function commitsBetween(between) {
  return ["repository", "t2eval"].flatMap((name) => {
    const { first, last, log } = between[name];
    const title = name === "repository" ? "The repository" : "t2eval";
    if (!first && !last) return [];
    if (!first || !last) return [el("p", { class: "hint" }, `${title}: ${first || "not known"} → ${last || "not known"}.`)];
    if (first === last) return [el("p", { class: "hint" }, `${title}: both at ${first}.`)];
    const items = (log || []).map((commit) => el("li", {}, el("code", {}, commit.commit), ` ${commit.date} `, commit.subject));
    return [el("details", { open: items.length <= 20 }, el("summary", {}, `${title}: ${first} → ${last}${log ? `, ${items.length} commits` : ", which the repository here does not know"}`), items.length ? el("ol", { class: "commits" }, items) : null)];
  });
}

function historyTable(runs, history, task) {
  const methods = unique(runs.flatMap((run) => run.methods));
  const rows = methods.flatMap((method) => {
    if (!runs.some((run) => entryOf(run, method, task))) return [];
    const squares = runs.map((run, number) => {
      const entry = entryOf(run, method, task);
      const test = number ? history[number - 1].comparisons.find((each) => each.method === method && each.task === task) : null;
      const sure = test && test.p !== null && test.p < 0.05;
      const kind = sure ? (test.gain > 0 ? "up" : "down") : "even";
      const about = test ? `against the run before: ${signed(test.gain)}, p = ${pValue(test.p)} (${test.test})` : null;
      return el("td", { class: "number", "data-label": run.name }, entry ? [fixed(entry.score), el("span", { class: "error" }, entry.stderr === null ? "" : ` ± ${fixed(entry.stderr)}`)] : "–", test ? el("span", { class: `gain ${kind}`, title: about }, sure ? (test.gain > 0 ? "▲ " : "▼ ") : "", signed(test.gain)) : null);
    });
    return [el("tr", {}, el("th", { scope: "row" }, method), squares)];
  });
  return el("table", { class: "board" }, el("caption", {}, `${task}: score ± standard error, and the gain over the run before (▲ ▼: significant after Holm's correction)`), el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "method"), runs.map((run) => el("th", { scope: "col", class: "number" }, run.name)))), el("tbody", {}, rows));
}

function historyView(_, settings) {
  const { runs, history } = PAGE.summary;
  const begun = runs.map((run) => el("li", {}, el("b", {}, run.name), run.commits.length ? ` rows of ${run.commits[0].time.replace("T", " ").slice(0, 16)} UTC` : "", run.commits.length && run.commits.at(-1).repository ? `, commit ${run.commits.at(-1).repository}` : "", `, t2eval ${run.versions.t2eval ?? "–"}, lm-eval ${run.versions.lm_eval ?? "–"}, torch ${run.versions.torch ?? "–"}`));
  if (runs.length < 2) return el("section", {}, el("p", {}, "This page has one run. Give earlier ones, oldest first: ", el("code", {}, "t2 leaderboard DIR --earlier OLDER_DIR --html page.html")), el("ul", {}, begun));
  const tasks = unique(runs.flatMap((run) => run.tasks));
  const task = tasks.includes(settings.get("task")) ? settings.get("task") : tasks[0];
  const methods = unique(runs.flatMap((run) => run.methods));
  const series = methods.map((method, color) => ({ name: method, color, dots: true, points: runs.flatMap((run, number) => (entryOf(run, method, task) ? [[number, entryOf(run, method, task).score]] : [])) })).filter((line) => line.points.length);
  return el(
    "section",
    {},
    el("div", { class: "controls" }, chooser("Task", "task", tasks, task, (value) => { location.hash = link("history", { task: value }); })),
    el("figure", { class: "large" }, lines({ series, label: `scores of ${task} by run`, xLabel: "run", labels: runs.map((run) => run.name), width: innerWidth < 760 ? 360 : 640, height: innerWidth < 760 ? 220 : 260 }), legend(methods)),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Scores by run" }, historyTable(runs, history, task)),
    el("h2", {}, "Runs"),
    el("ul", {}, begun),
    history.map((step, number) => el("section", {}, el("h3", {}, `${runs[number].name} → ${runs[number + 1].name}`), commitsBetween(step.between))),
  );
}
