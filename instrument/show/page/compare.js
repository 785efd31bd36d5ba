"use strict";
// Overlays runs from DATA (compare/overlay.py): one colour a run, training as a line, evaluation dashed with points.
const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c6", "--c7", "--c8", "--c5"];
const AXES = ["step", "epoch", "rows", "tokens", "time"].filter((axis) => DATA.runs.every((run) => run.axes[axis]));

function build() {
  document
    .getElementById("top")
    .append(
      el("h1", {}, t("compare.page.title")),
      el("span", { class: "dim made" }, when(DATA.made)),
      el("span", { class: "spacer" }),
      languageSwitch(),
    );
  summary();
  overlay();
  const head = (...names) => el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name))));
  section(
    "runs",
    t("compare.page.runs"),
    scrolling(
      `${t("compare.page.runs")}: ${t("page.table")}`,
      el(
        "table",
        {},
        head(
          ...["compare.page.run", "compare.page.state", "compare.page.best", "compare.page.last"].map((key) => t(key)),
        ),
        el(
          "tbody",
          {},
          ...DATA.runs.map((run, i) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, swatch(css(COLOURS[i % COLOURS.length])), `${DATA.names[i]}  ${run.name}`),
              ...["state", "best", "last"].map((name) => el("td", {}, said(DATA.table[i][name]) ?? "–")),
            ),
          ),
        ),
      ),
    ),
  );
  section("words", t("compare.page.in_words"), ...DATA.findings[LANGUAGE()].map((found) => finding(found)));
  if (DATA.differing.length)
    section(
      "differs",
      t("compare.page.differs"),
      scrolling(
        `${t("compare.page.differs")}: ${t("page.table")}`,
        el(
          "table",
          {},
          head(t("compare.page.key"), ...DATA.names),
          el(
            "tbody",
            {},
            ...DATA.differing.map(([key, ...rest]) =>
              el("tr", {}, el("th", { scope: "row", class: "key" }, breakable(key)), ...rest.map((value) => el("td", {}, value))),
            ),
          ),
        ),
      ),
    );
  const links = [...document.querySelectorAll("main > section[id]")].map((place) => [
    place.id,
    place.getAttribute("aria-label"),
  ]);
  contents(links, zoomOut());
}

// The first judgement that is more than a remark.
function summary() {
  const findings = DATA.findings[LANGUAGE()],
    own = findings.find((found) => found.verdict !== "note");
  if (own) document.getElementById("main").append(statusLine(own.verdict, null, own.word, null, own.sentence));
}

// Where one run is far longer than another, their steps have little in common; what they saw of the data may have.
function fairAxis() {
  const spread = (axis) => {
    const ends = DATA.runs.map((run) => run.axes[axis].steps.findLast((value) => value !== null) || 0);
    return Math.max(...ends) / Math.min(...ends);
  };
  return AXES.includes("epoch") && spread("step") > 3 && spread("epoch") < spread("step") ? "epoch" : "step";
}

function overlay() {
  const place = section("overlaid", t("compare.page.overlay")),
    controls = el("div", { class: "controls" });
  const changed = () => {
    zoomTo(null);
    for (const one of CHARTS) one.look.log = null;
    redrawCharts();
  };
  const longest = Math.max(...DATA.runs.map((run) => run.steps.step.length)),
    top = Math.max(1, Math.min(200, Math.floor(longest / 4)));
  STATE.axis ??= fairAxis();
  controls.append(
    choice(
      "metric",
      DATA.metrics.map((one) => [one.id, said(one.label)]),
      t("compare.page.metric"),
      changed,
    ),
    choice(
      "axis",
      AXES.map((name) => [name, said(DATA.runs[0].axes[name].label)]),
      t("page.along"),
      changed,
    ),
  );
  if (top > 1) controls.append(slider("smoothing", t("compare.page.smoothing"), 1, top, redrawCharts));
  place.append(controls);
  chart(place, "overlay", overlaid, "main");
}

function overlaid() {
  const metric = DATA.metrics.find((one) => one.id === STATE.metric),
    lines = [],
    marks = [];
  DATA.runs.forEach((run, i) => {
    const axis = run.axes[STATE.axis],
      group = DATA.names[i],
      colour = COLOURS[i % COLOURS.length],
      name = `${DATA.names[i]} ${run.name}`,
      both = metric.steps && metric.evals;
    if (metric.steps && run.steps[metric.steps])
      lines.push({
        label: both ? `${name}, ${t("compare.page.training")}` : name,
        legend: name,
        x: axis.steps,
        y: smooth(run.steps[metric.steps], STATE.smoothing || 1),
        colour,
        group,
      });
    if (metric.evals && run.evals[metric.evals] && run.evals.step.length)
      lines.push({
        label: both ? `${name}, ${t("compare.page.evaluation")}` : name,
        x: axis.evals,
        y: run.evals[metric.evals],
        colour,
        dashed: true,
        points: true,
        quiet: both,
        group,
      });
    if (metric.id === "grad_norm")
      for (const own of run.foretold)
        lines.push({
          label: t("compare.page.foretold", { run: DATA.names[i], rows: number(own.rows) }),
          x: own.at.map((at) => axis.steps[at]),
          y: own.y,
          // over the line of the run whose rows they are
          colour: COLOURS[own.of % COLOURS.length],
          dashed: true,
          points: true,
          group: DATA.names[own.of],
        });
    for (const mark of run.marks)
      if (mark.kind !== "skipped" && (!mark.on || mark.on.includes(metric.id)))
        marks.push({
          kind: mark.kind,
          colour,
          x: mark.at[STATE.axis] || [],
          text: `${DATA.names[i]}: ${said(mark.text)}`,
        });
  });
  const every = lines.flatMap((line) => line.x).filter((x) => x !== null);
  const least = every.reduce((a, b) => Math.min(a, b), Infinity),
    most = every.reduce((a, b) => Math.max(a, b), -Infinity);
  return {
    id: "overlay",
    title: said(metric.label),
    unit: metric.unit,
    log: metric.log,
    axis: said(DATA.runs[0].axes[STATE.axis].label),
    extent: every.length ? [least, most] : [0, 1],
    lines,
    marks,
    caption: [
      ...(metric.steps && metric.evals ? [t("compare.page.kinds")] : []),
      ...(metric.id === "grad_norm" && DATA.runs.some((run) => run.foretold.length) ? [t("compare.page.foretold_says")] : []),
    ],
  };
}

start(build);
