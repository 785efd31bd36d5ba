"use strict";
// The board: rows in order, filtered, ticked, tagged; and the stream that changes them.
const ROWS = new Map(DATA.rows.map((row) => [row.id, row]));
const LINES = new Map(); // id -> {line, cells, keys}
const TICKED = new Set();
const MOST = 26;
let body, count, compare, words, announce, selects;

function build() {
  document.documentElement.lang = LANGUAGE();
  document.title = t("board.page.title", { folder: DATA.folder });
  LINES.clear();
  const languages = [
    ["en", "English"],
    ["ko", "한국어"],
  ].map(([lang, name]) =>
    el(
      "button",
      {
        id: "lang-" + lang,
        lang,
        "aria-pressed": String(LANGUAGE() === lang),
        onclick: () => {
          keep({ lang });
          build();
          document.getElementById("lang-" + lang).focus();
        },
      },
      name,
    ),
  );
  count = el("span", { class: "dim", role: "status" });
  document
    .getElementById("top")
    .replaceChildren(
      el("h1", { dir: "auto" }, t("board.page.title", { folder: DATA.folder })),
      count,
      el("span", { class: "spacer" }),
      el("span", { class: "languages" }, ...languages),
    );
  announce = el("p", { id: "lost", role: "alert", hidden: true });
  body = el("tbody", { role: "rowgroup" });
  document.getElementById("main").replaceChildren(announce, bar(), table(), el("p", { class: "empty", hidden: true }));
  for (const row of ROWS.values()) show(row);
  arrange();
}

function bar() {
  words = el("input", {
    type: "search",
    id: "find",
    value: STATE.find,
    placeholder: t("board.page.find"),
    "aria-label": t("board.page.find"),
    oninput: () => {
      keep({ find: words.value });
      arrange();
    },
  });
  compare = el("button", { id: "compare", class: "go", onclick: comparing }, "");
  selects = {
    status: choice("status", [["", t("board.page.any")], ...STATUSES.map((s) => [s, t(STATUS_WORDS[s])])]),
    verdict: choice("verdict", [["", t("board.page.any")], ...VERDICTS.map((v) => [v, t(VERDICT_WORDS[v])])]),
    sort: choice(
      "sort",
      Object.keys(COLUMNS).map((name) => [name, t(COLUMN_WORDS[name])]),
      "sorting",
    ),
  };
  return el("div", { class: "bar", role: "search" }, words, ...Object.values(selects), el("span", { class: "spacer" }), compare);
}

function choice(key, options, className = "") {
  const select = el(
    "select",
    {
      id: key,
      onchange: () => {
        keep(key === "sort" ? { sort: select.value, down: downwards(select.value) } : { [key]: select.value });
        arrange();
      },
    },
    ...options.map(([value, name]) => el("option", { value, selected: STATE[key] === value }, name)),
  );
  return el("label", { class: className }, el("span", {}, t(CHOICE_WORDS[key])), select);
}

const downwards = (name) => ["steps", "time", "date"].includes(name);

function table() {
  const heads = Object.keys(COLUMNS).map((name) =>
    el(
      "th",
      { scope: "col", role: "columnheader", class: "c-" + name, "data-name": name },
      el(
        "button",
        {
          onclick: () => {
            keep({ sort: name, down: STATE.sort === name ? !STATE.down : downwards(name) });
            arrange();
          },
        },
        t(COLUMN_WORDS[name]),
        el("span", { class: "order", "aria-hidden": "true" }),
      ),
    ),
  );
  const blank = (name, key) =>
    el("th", { scope: "col", role: "columnheader", class: "c-" + name }, el("span", { class: "unseen" }, t(key)));
  return el(
    "table",
    { role: "table", "aria-label": t("board.page.runs") },
    el(
      "thead",
      { role: "rowgroup" },
      el("tr", { role: "row" }, blank("tick", "board.page.tick"), ...heads, blank("edit", "board.page.edit")),
    ),
    body,
  );
}

// The line of a row: a cell is made anew only where it says something else, so that focus and text selection stay.
function show(row) {
  let one = LINES.get(row.id);
  if (!one) {
    const cells = {},
      cell = (name, ...content) =>
        (cells[name] = el(name === "name" ? "th" : "td", { class: "c-" + name, role: name === "name" ? "rowheader" : "cell", scope: name === "name" ? "row" : null }, ...content));
    const tick = el("input", {
      type: "checkbox",
      "aria-label": t("board.page.tick_one", { name: row.name }),
      onchange: () => {
        tick.checked ? TICKED.add(row.id) : TICKED.delete(row.id);
        comparable();
      },
    });
    tick.checked = TICKED.has(row.id);
    const pencil = el(
      "button",
      { class: "edit", "aria-label": t("board.page.edit_one", { name: row.name }), title: t("board.page.edit"), onclick: () => edit(row.id) },
      "✎",
    );
    const line = el(
      "tr",
      { role: "row", "data-id": row.id, class: row.study ? "inner" : "" },
      cell("tick", row.kind === "run" ? tick : ""),
      ...Object.keys(COLUMNS).map((name) => cell(name)),
      cell("edit", pencil),
    );
    one = { line, cells, keys: {} };
    LINES.set(row.id, one);
  }
  one.line.classList.toggle("old", Boolean(row.pending && row.verdict));
  for (const name of Object.keys(COLUMNS)) {
    const key = keyOf(name, row);
    if (one.keys[name] !== key) {
      one.keys[name] = key;
      one.cells[name].replaceChildren(...CELLS[name](row).filter((item) => item !== null && item !== ""));
    }
  }
}

function keyOf(name, row) {
  const parts = {
    name: [row.name, row.tags, row.note, row.trials, row.ended, STATE.open.includes(row.id)],
    state: [row.status, row.pending, !row.spark],
    loss: [row.loss, row.spark],
    best: [row.best],
    verdict: [row.error, row.verdict, row.pending],
    steps: [row.step, row.planned],
    time: [row.seconds],
    date: [row.date],
  };
  return JSON.stringify(parts[name]);
}

function matches(row) {
  const found = STATE.find.trim().toLowerCase().split(/\s+/);
  const text = [row.name, ...row.tags, row.note, row.best ? row.best.name : "", row.verdict ? row.verdict.topic + " " + topicWord(row.verdict) : ""].join("\n").toLowerCase();
  return (
    found.every((word) => text.includes(word)) &&
    (!STATE.status || row.status === STATE.status) &&
    (!STATE.verdict || (row.verdict && row.verdict.verdict === STATE.verdict))
  );
}

// What is shown, in order: trials stand below their study, folded unless it is open or they are searched for.
function arrange() {
  const narrowed = Boolean(STATE.find.trim() || STATE.status || STATE.verdict),
    value = COLUMNS[STATE.sort] || COLUMNS.date,
    way = STATE.down ? -1 : 1;
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === y || (x == null && y == null)) return a.name < b.name ? -1 : 1;
    return x == null ? 1 : y == null ? -1 : (x < y ? -1 : 1) * way;
  };
  const rows = [...ROWS.values()].sort(order),
    trials = new Map();
  for (const row of rows) if (row.study) trials.set(row.study, [...(trials.get(row.study) || []), row]);
  const shown = [];
  for (const row of rows) {
    if (row.study && ROWS.has(row.study)) continue;
    const own = (trials.get(row.id) || []).filter(matches);
    if (matches(row) || (narrowed && own.length)) shown.push(row);
    if (narrowed || STATE.open.includes(row.id)) shown.push(...own);
  }
  const focused = document.activeElement,
    lines = shown.map((row) => LINES.get(row.id).line),
    same = lines.length === body.children.length && lines.every((line, i) => body.children[i] === line);
  if (!same) {
    body.replaceChildren(...lines);
    if (focused && focused !== document.activeElement && body.contains(focused)) focused.focus();
  }
  for (const head of document.querySelectorAll("thead th[data-name]")) {
    const own = head.dataset.name === STATE.sort;
    if (own) head.setAttribute("aria-sort", STATE.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
    head.querySelector(".order").textContent = own ? (STATE.down ? " ↓" : " ↑") : "";
  }
  selects.sort.querySelector("select").value = STATE.sort;
  const empty = document.querySelector(".empty");
  empty.hidden = shown.length > 0;
  empty.textContent = ROWS.size ? t("board.page.no_match") : t("board.page.no_runs", { folder: DATA.folder });
  document.querySelector("table").hidden = !shown.length;
  tell(shown.length);
  comparable();
}

function tell(shown) {
  const runs = [...ROWS.values()].filter((row) => row.kind === "run"),
    running = runs.filter((row) => row.status === "running").length,
    waiting = runs.filter((row) => row.pending && !row.verdict && !row.error).length,
    parts = [t("board.page.count", { n: number(runs.length) })];
  if (running) parts.push(t("board.page.count_running", { n: number(running) }));
  if (shown !== undefined && shown < ROWS.size) parts.push(t("board.page.count_shown", { n: number(shown) }));
  if (waiting) parts.push(t("board.page.count_waiting", { n: number(waiting) }));
  const text = parts.join(" · ");
  if (count.textContent !== text) count.textContent = text;
}

function comparable() {
  for (const id of TICKED) if (!ROWS.has(id)) TICKED.delete(id);
  compare.textContent = TICKED.size ? t("board.page.compare_n", { n: TICKED.size }) : t("board.page.compare");
  compare.disabled = TICKED.size < 2 || TICKED.size > MOST;
  compare.title = compare.disabled ? t("board.page.compare_how", { most: MOST }) : "";
}

function comparing() {
  location.href = "compare?" + [...TICKED].map((id) => "id=" + id).join("&");
}

function find(tag) {
  keep({ find: tag });
  words.value = tag;
  arrange();
  words.focus();
}

// Points appended to a run: those from a step on that is run again go.
function append(row, points) {
  const [steps, loss] = (row.spark ??= [[], []]);
  for (const [step, value] of points) {
    while (steps.length && steps.at(-1) >= step) steps.pop(), loss.pop();
    steps.push(step), loss.push(value);
    if (steps.length > 500) steps.shift(), loss.shift();
    [row.step, row.loss] = [step, value];
  }
}

function changed(change) {
  let moved = change.gone.length > 0;
  for (const id of change.gone) ROWS.delete(id), LINES.delete(id);
  for (const row of change.rows) {
    moved ||= !ROWS.has(row.id) || ROWS.get(row.id).status !== row.status;
    ROWS.set(row.id, row);
    show(row);
  }
  for (const [id, points] of Object.entries(change.points)) {
    const row = ROWS.get(id);
    if (row) append(row, points), show(row);
  }
  if (moved || STATE.find || STATE.status || STATE.verdict) arrange();
  else tell();
}

// A tab that nobody looks at holds no connection: a browser gives a host six.
let stream = null,
  version = DATA.version;
function listen() {
  if (stream || document.hidden) return;
  stream = new EventSource("events?since=" + version);
  stream.addEventListener("change", (event) => {
    version = event.lastEventId;
    changed(JSON.parse(event.data));
  });
  stream.onopen = () => (announce.hidden = true);
  stream.onerror = () => {
    announce.hidden = false;
    announce.textContent = t("board.page.lost");
  };
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && stream) stream = stream.close() || null;
  else listen();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, textarea, select, dialog")) {
    event.preventDefault();
    words.focus();
  }
});
build();
listen();
