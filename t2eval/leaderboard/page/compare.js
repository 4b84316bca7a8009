// Two methods side by side: the tests, and the examples that each wins.

/** What `--compare` says of two methods, in the direction asked for. */
function comparisonsOf(run, a, b) {
  return run.comparisons.flatMap((each) => {
    if (each.a === a && each.b === b) return [each];
    if (each.a !== b || each.b !== a) return [];
    const turned = { a, b, first: each.second, second: each.first, gain: -each.gain };
    return [{ ...each, ...turned, low: each.high === null ? null : -each.high, high: each.low === null ? null : -each.low }];
  });
}

/** Examples that both have, with the difference in the direction in which more is better. */
async function duel(run, a, b, task) {
  const [first, second] = await Promise.all([groupOf(run, a, task), groupOf(run, b, task)]);
  const found = { first, second, won: [], lost: [], even: [] };
  for (const [key, mine] of first.examples) {
    const theirs = second.examples.get(key);
    if (!theirs) continue;
    const difference = (mine.score - theirs.score) * (first.higher ? 1 : -1);
    const kind = Math.abs(difference) < 1e-9 ? "even" : difference > 0 ? "won" : "lost";
    found[kind].push({ key, doc: mine.doc, mine, theirs, difference });
  }
  for (const kind of ["won", "lost"]) found[kind].sort((x, y) => Math.abs(y.difference) - Math.abs(x.difference) || x.doc - y.doc);
  return found;
}

function answerOf(group, example) {
  const samples = group.read[0];
  const text = samples.response ? samples.response[example.places[0]] : "";
  return text ?? "";
}

function chooser(label, id, names, value, change) {
  const options = names.map((name) => el("option", { value: name, selected: name === value }, name));
  return el("label", {}, `${label} `, el("select", { id, on: { change: (event) => change(event.target.value) } }, options));
}

function compareTable(run, tests, a, b, task) {
  const reach = Math.max(0.01, ...tests.flatMap((test) => [test.gain, test.low ?? 0, test.high ?? 0].map(Math.abs)));
  const significant = (test) => test.p !== null && test.p < 0.05;
  const titles = ["task", a, b, "gain", "95% interval", "p (Holm)", "n", "could show", "test"];
  return el(
    "table",
    { class: "board pair" },
    el("caption", {}, `${a} against ${b}, on the examples that both have`),
    el("thead", {}, el("tr", {}, titles.map((title, place) => el("th", { scope: "col", class: place && place < 8 ? "number" : null }, title)))),
    el(
      "tbody",
      {},
      tests.map((test) =>
        el(
          "tr",
          { "aria-current": test.task === task ? "true" : null },
          el("th", { scope: "row" }, el("a", { href: link("compare", { a, b, task: test.task }) }, test.task)),
          el("td", { class: "number", "data-label": a }, fixed(test.first)),
          el("td", { class: "number", "data-label": b }, fixed(test.second)),
          el("td", { class: `number ${significant(test) ? (test.gain > 0 ? "up" : "down") : "even"}`, "data-label": "gain" }, significant(test) ? (test.gain > 0 ? "▲ " : "▼ ") : "", signed(test.gain)),
          el("td", { class: "number", "data-label": "95% interval" }, interval(test.gain, test.low, test.high, reach), test.low === null ? "N/A" : `${signed(test.low)} to ${signed(test.high)}`),
          el("td", { class: "number", "data-label": "p (Holm)" }, pValue(test.p)),
          el("td", { class: "number", "data-label": "n" }, whole(test.n), test.clusters ? ` in ${test.clusters}` : ""),
          el("td", { class: "number", "data-label": "could show" }, test.smallest === undefined ? "–" : test.smallest === null ? "nothing" : fixed(test.smallest)),
          el("td", { class: "test", "data-label": "test" }, test.test, test.left_out ? `; ${test.left_out} documents left out of both sides` : ""),
        ),
      ),
    ),
  );
}

/** The examples of one task: won, lost, even; chosen ones open below. */
async function duelView(run, a, b, task, settings) {
  const found = await duel(run, a, b, task);
  const documents = await documentsOf(found.first.cells[0]);
  const detail = el("div", { class: "detail", tabindex: -1 });
  let kind = ["won", "lost", "even"].includes(settings.get("kind")) ? settings.get("kind") : found.won.length ? "won" : found.lost.length ? "lost" : "even";
  const list = longList({
    label: `examples of ${task}`,
    height: 76,
    render: (place) => {
      const each = found[kind][place];
      const asked = documents.get(each.doc)?.prompt;
      return [
        el("div", { class: "line" }, el("b", {}, `#${each.doc}`), " ", asked ? snippet(asked.slice(-400)) : "(the prompt was not kept)"),
        el("div", { class: "line two" }, el("span", { class: "who" }, `${a} ${fixed(each.mine.score, 2)} `), snippet(answerOf(found.first, each.mine), 90)),
        el("div", { class: "line two" }, el("span", { class: "who" }, `${b} ${fixed(each.theirs.score, 2)} `), snippet(answerOf(found.second, each.theirs), 90)),
      ];
    },
    open: async (place) => {
      const each = found[kind][place];
      const side = (group, example, name) => lifeOf(run, group.cells[0], example.places[0], name);
      const both = await Promise.all([side(found.first, each.mine, a), side(found.second, each.theirs, b)]);
      detail.replaceChildren(...both);
    },
  });
  const tabs = [["won", `${a} is better`], ["lost", `${b} is better`], ["even", "no difference"]].map(([name, title]) =>
    el("button", { type: "button", id: `kind-${name}`, "aria-pressed": name === kind ? "true" : "false", on: { click: () => pick(name) } }, `${title}: ${found[name].length}`),
  );
  function pick(name) {
    kind = name;
    for (const tab of tabs) tab.setAttribute("aria-pressed", tab.id === `kind-${name}` ? "true" : "false");
    keep("compare", { kind });
    list.show(found[kind].length);
    detail.replaceChildren(el("p", { class: "hint" }, found[kind].length ? "Choose an example: both answers open here." : "There is none of these."));
  }
  pick(kind);
  const all = found.won.length + found.lost.length + found.even.length;
  const seeds = Math.max(found.first.read.length, found.second.read.length);
  const about = `${all} examples that both have${seeds > 1 ? ", scores averaged over the seeds, answers of the first seed" : ""}.`;
  return el("section", { class: "duel" }, el("h2", {}, task), el("p", { class: "hint" }, about), el("div", { class: "controls", role: "group", "aria-label": "Which examples" }, tabs), el("div", { class: "columns" }, list.node, detail));
}

async function compareView(run, settings) {
  const methods = run.methods.filter((method) => run.entries.some((entry) => entry.method === method));
  const preferred = methods.find((method) => method !== "base") ?? methods[0];
  const a = methods.includes(settings.get("a")) ? settings.get("a") : preferred;
  const b = methods.includes(settings.get("b")) && settings.get("b") !== a ? settings.get("b") : methods.find((method) => method !== a);
  if (b === undefined) return el("section", {}, el("p", {}, "There is one method: nothing to compare it with."));
  const tests = comparisonsOf(run, a, b);
  const tasks = run.tasks.filter((name) => entryOf(run, a, name) && entryOf(run, b, name));
  if (!tasks.length) return el("section", {}, el("p", {}, `${a} and ${b} share no task.`));
  const task = tasks.includes(settings.get("task")) ? settings.get("task") : tasks[0];
  const go = (changes) => { location.hash = link("compare", { a, b, task, ...changes }); };
  const with_samples = cellsOf(run, a, task).some((cell) => cell.samples) && cellsOf(run, b, task).some((cell) => cell.samples);
  return el(
    "section",
    {},
    el("div", { class: "controls" }, chooser("Method", "a", methods.filter((name) => name !== b), a, (value) => go({ a: value })), chooser("against", "b", methods.filter((name) => name !== a), b, (value) => go({ b: value })), el("button", { type: "button", id: "swap", on: { click: () => go({ a: b, b: a }) } }, "Swap"), chooser("Task", "task", tasks, task, (value) => go({ task: value }))),
    tests.length ? el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Tests" }, compareTable(run, tests, a, b, task)) : el("p", {}, "No test: there are no scores of the same examples."),
    with_samples ? await duelView(run, a, b, task, settings) : el("p", {}, "No examples were kept."),
  );
}
