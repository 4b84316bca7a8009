// The page: views, keys, theme, print, and news from a server.
const PAGE = { summary: null, run: null, drawing: 0 };
const VIEWS = {
  table: { title: "Table", draw: tableView },
  compare: { title: "Compare", draw: compareView },
  samples: { title: "Examples", draw: samplesView },
  learning: { title: "Learning", draw: learningView, paper: true },
  dispatch: { title: "Dispatch", draw: dispatchView, paper: true },
  alpha: { title: "α", draw: alphaView, paper: true },
  seconds: { title: "Seconds", draw: secondsView, paper: true },
  history: { title: "History", draw: historyView, paper: true },
};
const KEYS = [
  ["1 … 8", "the views, from the table to the history"],
  ["/", "filter or search"],
  ["t", "light, dark, or as the system says"],
  ["↓ ↑ or j k", "the next or last example of a list"],
  ["Page Down, Page Up, Home, End", "further in a list"],
  ["Tab, Enter", "links, buttons and columns: Enter on a column sorts by it"],
  ["?", "these keys"],
];

function byId(id) {
  return document.getElementById(id);
}

// ---------------------------------------------------------------------- views
async function draw() {
  const { view, settings } = place();
  const name = view in VIEWS ? view : "table";
  const turn = ++PAGE.drawing;
  for (const item of byId("nav").children) {
    if (item.dataset.view === name) item.setAttribute("aria-current", "page");
    else item.removeAttribute("aria-current");
  }
  let found;
  try {
    found = await VIEWS[name].draw(PAGE.run, settings);
  } catch (error) {
    found = el("section", {}, el("p", { class: "down" }, `This part of the page cannot be read: ${error.message}`));
  }
  if (turn !== PAGE.drawing) return; // somebody has gone on to another view
  const main = byId("main");
  main.dataset.view = name;
  main.replaceChildren(found);
  document.body.dataset.drawn = name;
}

function pickRun(number) {
  PAGE.run = PAGE.summary.runs[number];
  const run = PAGE.run;
  byId("title").replaceChildren(...shown(run.title));
  const cells = run.planned > run.ended ? `${run.ended} of ${run.planned} cells so far` : `${run.cells.length} cells`;
  byId("about").replaceChildren(...shown(`Base model: ${run.model} · ${cells} · ${run.methods.length} methods · ${run.tasks.length} tasks`));
}

function setUp() {
  byId("nav").replaceChildren(...Object.entries(VIEWS).map(([name, { title }]) => el("a", { href: link(name), "data-view": name }, title)));
  const { runs } = PAGE.summary;
  pickRun(runs.length - 1);
  if (runs.length > 1) {
    byId("run-label").hidden = false;
    byId("run").replaceChildren(...runs.map((run, number) => el("option", { value: number, selected: number === runs.length - 1 }, run.name)));
    byId("run").addEventListener("change", (event) => { pickRun(Number(event.target.value)); draw(); });
  }
  byId("help").replaceChildren(
    el("h2", { id: "help-title" }, "Keys"),
    el("dl", {}, KEYS.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
    el("form", { method: "dialog" }, el("button", {}, "Close")),
  );
  byId("keys").addEventListener("click", () => byId("help").showModal());
  byId("theme").addEventListener("click", nextTheme);
  addEventListener("hashchange", draw);
  addEventListener("keydown", pressed);
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const names = Object.keys(VIEWS);
  if (event.key >= "1" && event.key <= String(names.length)) location.hash = link(names[Number(event.key) - 1]);
  else if (event.key === "/") document.querySelector("main input[type=search]")?.focus();
  else if (event.key === "t") nextTheme();
  else if (event.key === "?") byId("help").showModal();
  else if ((event.key === "j" || event.key === "k") && document.querySelector("main .list")) {
    const list = document.querySelector("main .list");
    list.focus();
    list.dispatchEvent(new KeyboardEvent("keydown", { key: event.key }));
  } else return;
  event.preventDefault();
}

// ---------------------------------------------------------------------- theme
const THEMES = ["", "light", "dark"];

function remembered() {
  try { return localStorage.getItem("t2eval-theme") || ""; } catch { return ""; } // a page from disk may have no storage
}

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = `Theme: ${name || "system"}`;
}

function nextTheme() {
  const name = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "") + 1) % THEMES.length];
  setTheme(name);
  try { localStorage.setItem("t2eval-theme", name); } catch { /* it is forgotten with the page */ }
}

// ---------------------------------------------------------------------- print
/** On paper stand the view that is open and all that need no choice. */
function fillPaper() {
  const open = document.body.dataset.drawn;
  const kinds = Object.entries(VIEWS).filter(([name, view]) => view.paper && name !== open && (name !== "history" || PAGE.summary.runs.length > 1));
  const table = open === "table" ? [] : [["table", VIEWS.table]];
  const settings = new URLSearchParams();
  const before = location.hash;
  byId("print").replaceChildren(...[...table, ...kinds].map(([, view]) => el("section", {}, el("h2", {}, view.title), view.draw(PAGE.run, settings))));
  history.replaceState(null, "", before || "#");
}

addEventListener("beforeprint", fillPaper);
addEventListener("afterprint", () => byId("print").replaceChildren());

// ---------------------------------------------------------------------- news
const SECONDS = 3;

function tell(...children) {
  byId("news").replaceChildren(...el("span", {}, children).childNodes);
  byId("news").hidden = false;
}

/** A page that a server gave asks it for a newer one; the table is shown anew at once, other views when one likes. */
async function listen(tag) {
  try {
    const now = await (await fetch("/tag", { cache: "no-store" })).text();
    if (now !== tag) {
      if (document.body.dataset.drawn === "table" && document.activeElement?.type !== "search") return location.reload();
      tell("There are new rows. ", el("button", { type: "button", on: { click: () => location.reload() } }, "Show them"));
    } else byId("news").hidden = true;
  } catch {
    tell("The server of this page has ended; what is here stays.");
  }
  setTimeout(listen, SECONDS * 1000, tag);
}

async function begin() {
  setTheme(remembered());
  try {
    PAGE.summary = await data("summary");
  } catch (error) {
    byId("main").replaceChildren(el("p", { class: "down" }, `This page cannot be read (${error.message}). It needs a browser of 2023 or later, and a whole file.`));
    return;
  }
  setUp();
  await draw();
  document.body.dataset.ready = String(Math.round(performance.now()));
  if (PAGE.summary.served) setTimeout(listen, SECONDS * 1000, PAGE.summary.served);
}

begin();
