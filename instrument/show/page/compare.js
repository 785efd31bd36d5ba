"use strict";
// Overlays runs from DATA (instrument/compare).
const COLOURS = ["#2f81f7", "#e5484d", "#30a46c", "#d99a00", "#8e4ec6", "#12a594", "#ad7f58", "#889096"];
const SHOWN = ["loss", "eval_loss", "grad_norm", "learning_rate", "loss_scale", "tokens_per_second", "step_seconds", "max_sequence_length", "memory_reserved_gib", "host_memory_gib"]
  .filter((name) => DATA.runs.some((run) => (name === "eval_loss" ? run.evals.step.length : run.steps[name])));
const AXIS_NAMES = { step: "compare.page.step", tokens: "compare.page.tokens", minutes: "compare.page.minutes" };
const AXES = Object.keys(AXIS_NAMES).filter((axis) => axis === "step" || DATA.runs.every((run) => run.steps[axis === "tokens" ? "tokens" : "step_seconds"]));

function build(again) {
  document.getElementById("top").append(el("h1", {}, t("compare.page.title")), el("span", { class: "spacer" }), languageSwitch(again));
  section(t("compare.page.runs"), pairs(DATA.runs.map((run, i) => [DATA.names[i], run.path])));
  section(t("compare.page.in_words"), ...DATA.findings[LANGUAGE()].map((found) => el("div", { class: "finding " + found.verdict },
    el("span", { class: "word" }, found.word), el("p", {}, found.sentence), found.hint ? el("p", { class: "hint" }, t("page.change"), " ", found.hint) : null)));
  overlay();
  if (DATA.differing.length) section(t("compare.page.differs"), el("table", {},
    el("tr", {}, el("th", {}, ""), ...DATA.names.map((name) => el("th", {}, name))),
    ...DATA.differing.map((row) => el("tr", {}, ...row.map((value) => el("td", {}, value))))));
}

function overlay() {
  const place = section(t("compare.page.overlay")), controls = el("div", { class: "controls" });
  place.append(controls);
  const choice = (key, names, label) => {
    const select = el("select", { id: key, "aria-label": label, onchange: () => { remember({ [key]: select.value }); drawAll(); } },
      ...names.map((name) => el("option", { value: name, selected: STATE[key] === name }, t(AXIS_NAMES[name]) || name)));
    if (!names.includes(STATE[key])) STATE[key] = names[0];
    return el("label", {}, label, select);
  };
  const longest = Math.max(...DATA.runs.map((run) => run.steps.step.length));
  controls.append(choice("metric", SHOWN, t("compare.page.metric")), choice("axis", AXES, t("compare.page.axis")), slider("smoothing", t("compare.page.smoothing"), 1, Math.max(1, Math.min(200, Math.floor(longest / 4))), drawAll));
  chart(place, "overlay", () => DATA.runs.map((run, i) => {
    const metric = STATE.metric, evals = metric === "eval_loss";
    const x = along(run, STATE.axis);
    const y = evals ? run.evals.eval_loss : run.steps[metric] || [];
    const at = evals ? run.evals.step.map((step) => x[run.steps.step.indexOf(step)]) : x;
    return { x: at, y: evals ? y : smooth(y, STATE.smoothing), name: plain(`${DATA.names[i]} ${short(run.path, 40)}`), mode: evals ? "lines+markers" : "lines", line: { color: COLOURS[i % COLOURS.length], width: 1.5 }, connectgaps: false };
  }), () => ({ xaxis: { title: { text: t(AXIS_NAMES[STATE.axis]) } }, yaxis: { type: ["grad_norm", "loss_scale"].includes(STATE.metric) ? "log" : "linear" }, hovermode: "closest" }), "chart map");
}

// The horizontal axis of a run: its steps, or tokens or minutes of stepping so far.
function along(run, axis) {
  if (axis === "step") return run.steps.step;
  let sum = 0;
  return run.steps[axis === "tokens" ? "tokens" : "step_seconds"].map((v) => (sum += (v || 0) / (axis === "minutes" ? 60 : 1)));
}

start(build);
