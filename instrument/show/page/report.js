"use strict";
// The page of one run from DATA (data.py): how it stands, its charts, its layers, and everything in words.
let AXES = [];
let STEPS = [];
// From so many steps on single ones hide the course; they stay behind it.
const MANY = 500;
const OUTCOMES = {
  failed: "report.remedy.failed",
  costly: "report.remedy.costly",
  worked: "report.remedy.worked",
  taken: "report.remedy.taken",
};
const ACTIONS = { heal: "report.action.heal", rollback: "report.action.rollback", stop: "report.action.stop" };

function build() {
  STEPS = DATA.steps.step;
  AXES = Object.keys(DATA.axes);
  document
    .getElementById("top")
    .append(
      el("h1", {}, DATA.name),
      el(
        "span",
        { class: "dim made" },
        t("report.made", { made: when(DATA.made) }) + (DATA.following ? " · " + t("report.following") : ""),
      ),
      el("span", { class: "spacer" }),
      languageSwitch(),
    );
  const charts = (name) => DATA.charts.filter((one) => one.section === name);
  overview();
  if (DATA.incidents.length) section("collapses", t("report.incidents"), ...DATA.incidents.map(incident));
  for (const [name, title] of [
    ["grad_norm", "report.grad_norm"],
    ["evals", "report.evals"],
    ["other", "report.other"],
    ["schedule", "report.schedule"],
  ]) {
    if (charts(name).length) chartSection(name, t(title), charts(name));
    if (name === "evals" && DATA.classes) classes(DATA.classes);
  }
  rowSection();
  if (STEPS.length) layerSection();
  if (charts("resources").length) chartSection("resources", t("report.resources"), charts("resources"));
  section(
    "settings",
    t("report.settings"),
    ...[
      ["report.config", DATA.config],
      ["report.environment", DATA.environment],
    ]
      .filter(([, rows]) => rows.length)
      .map(([key, rows]) => el("details", { id: key }, el("summary", {}, t(key)), pairs(rows))),
  );
  const links = [...document.querySelectorAll("main > section[id]")].map((place) => [
    place.id,
    place.getAttribute("aria-label"),
  ]);
  const axis =
    AXES.length > 1
      ? choice(
          "axis",
          AXES.map((name) => [name, said(DATA.axes[name].label)]),
          t("page.along"),
          () => {
            zoomTo(null);
            redrawCharts();
          },
        )
      : null;
  contents(links, zoomOut(), axis);
}

function overview() {
  const status = DATA.status,
    problems = DATA.problems[LANGUAGE()],
    place = section("overview", t("report.overview"));
  const n = problems.reduce((sum, group) => sum + group.findings.length, 0);
  const state = [el("b", {}, said(status.state)), status.best ? " · " + said(status.best) : ""];
  place.append(
    statusLine(status.verdict, state, said(status.word), said(status.topic), said(status.sentence)),
    tileRow(DATA.tiles),
  );
  const first = el("div", { class: "first" }),
    left = el("div", {});
  place.append(first);
  first.append(left);
  if (STEPS.length) loss(left);
  else left.append(el("p", {}, t("report.no_steps")));
  first.append(
    el(
      "div",
      { class: "problems", id: "problems" },
      el("h2", {}, n ? t("report.problems", { n }) : t("report.no_problems")),
      ...problems.flatMap((group) => group.findings.map((found) => finding(found, group.topic))),
      words(),
    ),
  );
}

// What was taken for what at the last evaluation, and each class's scores; a cell is as dark as its share of its row.
function classes(found) {
  const head = (names) => el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)))),
    share = (value) => (value === null ? "–" : (100 * value).toFixed(1) + "%"),
    matrix = found.counts.map((row, i) => {
      const all = row.reduce((sum, n) => sum + n, 0),
        cells = row.map((n, j) => {
          const dark = all ? Math.round((60 * n) / all) : 0,
            cell = el("td", {}, n.toLocaleString("en"));
          // the page's policy allows no style attribute
          cell.style.background = `color-mix(in srgb, var(${i === j ? "--good" : "--wrong"}) ${dark}%, transparent)`;
          return cell;
        });
      return el("tr", {}, el("th", { scope: "row" }, found.labels[i]), ...cells);
    }),
    scores = found.scores.map(([name, precision, recall, f1, n]) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, name),
        ...[share(precision), share(recall), share(f1), n.toLocaleString("en")].map((text) => el("td", {}, text)),
      ),
    ),
    some = found.of > found.labels.length ? t("report.classes_some", { n: found.labels.length, of: found.of }) : "";
  section(
    "at-classes",
    t("report.classes"),
    el("p", { class: "dim" }, [t("report.classes_at", { step: found.step }), some].filter(Boolean).join(" ")),
    el(
      "div",
      { class: "two" },
      el(
        "div",
        { class: "scroll" },
        el("table", { class: "values", id: "confusion" }, head([t("report.class"), ...found.labels]), el("tbody", {}, ...matrix)),
      ),
      el(
        "div",
        { class: "scroll" },
        el(
          "table",
          { class: "values", id: "of-classes" },
          head([t("report.class"), t("report.precision"), t("report.recall"), "F1", t("report.support")]),
          el("tbody", {}, ...scores),
        ),
      ),
    ),
  );
}

// What is healthy, and what is only to be known: folded.
function words() {
  const groups = DATA.explanation[LANGUAGE()],
    place = el("div", { id: "words", class: "folded" }),
    folded = (verdict) =>
      groups
        .map((group) => ({ ...group, findings: group.findings.filter((found) => found.verdict === verdict) }))
        .filter((group) => group.findings.length);
  for (const verdict of ["note", "healthy"]) {
    const own = folded(verdict),
      n = own.reduce((sum, group) => sum + group.findings.length, 0);
    if (n)
      place.append(
        el(
          "details",
          { id: "words-" + verdict },
          el("summary", {}, `${own[0].findings[0].word} · ${n}`),
          ...topics(own),
        ),
      );
  }
  return place;
}

function incident(found) {
  const tried = found.remedies.map((one) =>
    el(
      "li",
      { class: one.outcome },
      said(one.words),
      " ",
      el("code", {}, one.change),
      " ",
      el("span", {}, t(OUTCOMES[one.outcome], { loss: number(one.loss) })),
    ),
  );
  return el(
    "div",
    { class: "incident" },
    el(
      "p",
      {},
      el("b", {}, `${t("page.step_n", { step: found.step })}: ${said(found.kind)}`),
      " ",
      el("code", {}, found.module || "–"),
    ),
    found.rows ? el("p", { class: "dim" }, t("report.rows", { rows: found.rows })) : null,
    tried.length ? el("p", {}, t("report.tried")) : null,
    tried.length ? el("ol", {}, ...tried) : null,
    el("p", {}, ACTIONS[found.action] ? t(ACTIONS[found.action]) : found.action),
    el("p", { class: "dim" }, t("report.replay"), " ", el("code", {}, found.replay)),
  );
}

// A chart of data.py on the axis that is chosen; `change` may alter its lines.
function spec(one, change = (lines) => lines) {
  const axis = DATA.axes[STATE.axis || "step"] || DATA.axes.step;
  const lines = one.lines.map((line) => ({
    ...line,
    label: said(line.label),
    x: axis[line.source],
    y: (line.source === "evals" ? DATA.evals : DATA.steps)[line.column],
  }));
  return {
    id: one.id,
    title: said(one.title),
    unit: one.unit,
    log: one.log,
    zero: one.zero,
    band: one.band ? { ...one.band, label: said(one.band.label) } : null,
    axis: said(axis.label),
    extent: [axis.steps.find((v) => v !== null), axis.steps.findLast((v) => v !== null)],
    lines: change(lines),
    marks: DATA.marks
      .filter((mark) => !mark.on || mark.on.includes(one.id))
      .map((mark) => ({ kind: mark.kind, x: mark.at[STATE.axis || "step"] || [], text: said(mark.text) })),
    caption: (DATA.captions[one.id] || []).map(said),
  };
}

function chartSection(name, title, charts) {
  const place = el("div", { class: charts.length > 1 ? "two" : "" });
  section("at-" + name, charts.length > 1 ? title : said(charts[0].title), place);
  for (const one of charts) chart(place, one.id, () => spec(one), charts.length > 1 ? "" : "alone");
}

// Means of windows of `every` steps, as a log with that interval would print them; a window without numbers is a gap.
function coarser(x, y, every) {
  const found = { x: [], y: [] };
  for (let i = 0; i < y.length; i += every) {
    const own = y.slice(i, i + every).filter((v) => v !== null);
    found.x.push(x[Math.min(i + every, x.length) - 1]);
    found.y.push(own.length ? own.reduce((a, b) => a + b, 0) / own.length : null);
  }
  return found;
}

function loss(place) {
  if (STEPS.length >= MANY) STATE.smoothing ??= Math.min(200, Math.floor(STEPS.length / 100));
  const top = Math.max(1, Math.min(200, Math.floor(STEPS.length / 4))),
    own = DATA.charts.find((one) => one.id === "loss");
  const drawn = chart(
    place,
    "loss",
    () =>
      spec(own, (lines) => {
        const [train, ...rest] = lines,
          changed = [];
        if (STATE.every > 1) changed.push({ ...train, ...coarser(train.x, train.y, STATE.every) });
        else if (STATE.smoothing > 1)
          changed.push(
            { ...train, colour: "--faint", thin: true, group: "each", label: t("report.each_step") },
            { ...train, y: smooth(train.y, STATE.smoothing), label: t("report.mean_of", { n: STATE.smoothing }) },
          );
        else changed.push(train);
        return [...changed, ...rest, ...firstAttempt(train)];
      }),
    "main",
  );
  if (top > 1)
    place.append(
      el(
        "div",
        { class: "controls" },
        slider("smoothing", t("report.smoothing"), 1, top, drawn.update),
        slider("every", t("report.logged_every"), 1, top, drawn.update),
      ),
    );
}

// What steps gave that were run again after a collapse: only values; those that are none are marks.
function firstAttempt(train) {
  const kept = DATA.attempts.filter((one) => one.loss !== null);
  if (!kept.length) return [];
  const at = new Map(STEPS.map((step, i) => [step, train.x[i]]));
  return [
    {
      label: t("report.first_attempt"),
      exact: true,
      colour: "--wrong",
      dashed: true,
      points: kept.length < 3,
      x: kept.map((one) => at.get(one.step)),
      y: kept.map((one) => one.loss),
    },
  ];
}

start(build);
