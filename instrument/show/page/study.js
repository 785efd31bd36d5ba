"use strict";
// The page of a study from DATA (advise/page/data.py): what was searched, what each value reached, how each trial went.
const LINES = ["--c1", "--c2", "--c3", "--c4", "--c6", "--c7", "--c8", "--c5"];
const MOST_NAMED = 12;

function build() {
  document
    .getElementById("top")
    .append(
      el("h1", {}, t("sweep.page.title"), " ", DATA.name),
      el("span", { class: "dim made" }, when(DATA.made)),
      el("span", { class: "spacer" }),
      languageSwitch(),
    );
  const against = DATA.advice[LANGUAGE()].find((one) => one.verdict === "wrong"),
    place = section("overview", t("sweep.page.overview"));
  if (against) place.append(statusLine("wrong", null, against.word, null, against.sentence));
  place.append(tileRow(DATA.facts));
  if (DATA.keys.length) section("parallel", t("sweep.page.parallel"), ...parallels());
  if (DATA.isolation.length)
    section(
      "isolation",
      t("sweep.page.isolation"),
      el("p", { class: "dim" }, t("sweep.page.isolation_says")),
      el("div", { class: "two" }, ...DATA.isolation.map((one) => drawing(one.key, (width) => isolation(one, width))[0])),
    );
  if (DATA.trials.some((trial) => trial.curve.x.length)) {
    const place = section("curves", t("sweep.page.curves"));
    chart(place, "curve", curves, "main");
  }
  section("trials", t("sweep.page.trials"), scrolling(`${t("sweep.page.trials")}: ${t("page.table")}`, table()));
  advised(DATA.advice[LANGUAGE()]);
  const links = [...document.querySelectorAll("main > section[id]")].map((place) => [place.id, place.getAttribute("aria-label")]);
  contents(links, zoomOut());
}

// Open rules with what to run; those that are answered are folded.
function advised(advice) {
  if (!advice.length) return;
  const shown = (one) =>
    el(
      "div",
      { class: "topic" },
      finding({ ...one, hint: null }),
      one.command ? el("p", { class: "hint" }, el("code", { class: "lines" }, one.command)) : null,
    );
  const done = advice.filter((one) => one.verdict === "healthy");
  section(
    "advice",
    t("sweep.page.advice"),
    ...advice.filter((one) => one.verdict !== "healthy").map(shown),
    done.length
      ? el("details", { id: "answered" }, el("summary", {}, t("sweep.page.answered", { n: done.length })), ...done.map(shown))
      : null,
  );
}

// A drawing as wide as its place, so that its words stay as large as all others.
function drawing(label, make) {
  const place = el("figure", { class: "drawing scroll", tabindex: "0", "aria-label": label });
  const paint = () => place.replaceChildren(make(Math.max(330, place.clientWidth || 1000)));
  paint(); // at once, for paper
  new ResizeObserver(paint).observe(place);
  return [place, paint];
}

function parallels() {
  const [place, paint] = drawing(t("sweep.page.parallel"), (width) =>
    parallel(DATA.trials, DATA.keys, STATE.lit === "-" ? null : STATE.lit, width),
  );
  const pick = choice(
    "lit",
    [["-", t("sweep.page.all")], ...DATA.trials.map((trial) => [trial.name, named(trial)])],
    t("sweep.page.trial"),
    paint,
  );
  return [el("div", { class: "controls" }, pick), place, el("p", { class: "dim" }, t("sweep.page.parallel_says"))];
}

const named = (trial) => [trial.name, ...trial.settings].join("  ");

function curves() {
  const lines = [];
  DATA.trials.forEach((trial, i) => {
    if (!trial.curve.x.length) return;
    const colour = LINES[i % LINES.length];
    const group = trial.name;
    lines.push({ label: named(trial), group, ...trial.curve, colour, dashed: trial.dead, thin: true, quiet: DATA.trials.length > MOST_NAMED });
    if (trial.step !== null && trial.value !== null && !trial.dead)
      lines.push({ label: `${trial.name}: ${t("sweep.page.best_step")}`, group, x: [trial.step], y: [trial.value], colour, points: true, quiet: true, exact: true });
  });
  const every = lines.flatMap((line) => line.x);
  return {
    id: "curve",
    title: DATA.metric,
    axis: t("sweep.page.step"),
    extent: [Math.min(...every), Math.max(...every)],
    lines,
    log: false,
    caption: [t("sweep.page.curves_says")],
  };
}

function table() {
  const heads = [
    t("sweep.page.trial"),
    ...DATA.keys.map((key) => (key.role ? `${key.key} (${said(key.role)})` : key.key)),
    t("sweep.page.seed"),
    DATA.metric,
    t("sweep.page.step"),
    t("sweep.page.end"),
  ];
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ...heads.map((name) => el("th", { scope: "col" }, name)))),
    el(
      "tbody",
      {},
      ...DATA.trials.map((trial) =>
        el(
          "tr",
          { class: trial.dead ? "wrong" : null },
          el("th", { scope: "row" }, trial.letter ? `${trial.letter}  ${trial.name}` : trial.name),
          ...trial.settings.map((value) => el("td", {}, value)),
          el("td", {}, trial.seed),
          el("td", {}, number(trial.value)),
          el("td", {}, trial.step === null ? "–" : number(trial.step)),
          el("td", {}, el("span", { class: trial.dead ? "word" : null }, said(trial.end)), trial.why ? `: ${said(trial.why)}` : ""),
        ),
      ),
    ),
  );
}

start(build);
