"use strict";
// Draws the report of one run from DATA (data.py).
const S = DATA.steps, X = S.step, GRID = DATA.layers && DATA.layers.names ? DATA.layers : null;
const FP16_MAX = 65504;
const METRICS = {
  norm: "report.metric.norm", absmax: "report.metric.absmax", headroom: "report.metric.headroom",
  nonfinite: "report.metric.nonfinite", overflow: "report.metric.overflow", underflow: "report.metric.underflow",
};
const ACTIONS = { heal: "report.action.heal", rollback: "report.action.rollback", stop: "report.action.stop" };
const decoded = {};

function build(again) {
  document.getElementById("top").append(
    el("h1", {}, DATA.name), el("span", { class: "dim" }, t("report.made").replace("{made}", DATA.made) + (DATA.following ? " · " + t("report.following") : "")),
    el("span", { class: "spacer" }), languageSwitch(again));
  if (!X.length) section(t("report.loss"), el("p", {}, t("report.no_steps")));
  if (DATA.incidents.length) section(t("report.incidents"), ...DATA.incidents.map(incident));
  section(t("report.explanation"), ...findings(DATA.explanation[LANGUAGE()]));
  if (X.length) {
    lossSection();
    normSection();
    scheduleSection();
    layerSection();
    resourceSection();
  }
  section(t("report.settings"),
    el("details", {}, el("summary", {}, t("report.config")), pairs(DATA.config)),
    el("details", {}, el("summary", {}, t("report.environment")), pairs(DATA.environment)));
}

function incident(found) {
  return el("div", { class: "incident" },
    el("p", {}, el("b", {}, `${t("report.step")} ${found.step}: ${found.kind}`), " ", found.module),
    found.rows ? el("p", { class: "dim" }, `${t("report.rows")} ${found.rows}`) : null,
    ...found.remedies.map((r) => el("p", {}, (r.verified ? "✓ " : "– ") + r.change + (r.loss === null ? "" : ` (loss ${number(r.loss)})`))),
    el("p", { class: "dim" }, t(ACTIONS[found.action]) || found.action, " "), el("code", {}, found.replay));
}

// Vertical marks on every chart of steps: collapses, skipped steps, steps with micro-batches that are not finite.
function marks() {
  const lines = [], line = (x, color, dash) => lines.push({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color, width: 1, dash }, layer: "below" });
  const few = (list) => (list.length > 200 ? list.filter((_, i) => i % Math.ceil(list.length / 200) === 0) : list);
  for (const step of few(at(S.skipped))) line(step, css("--watch"), "dot");
  for (const step of few(at(S.nonfinite_micro_batches))) line(step, css("--wrong"), "dot");
  for (const found of DATA.incidents) line(found.step, css("--wrong"), "solid");
  return lines;
}

const at = (column) => (column ? X.filter((_, i) => column[i] > 0) : []);

// Means of windows of `every` steps, as a log with that interval would print them; a window without numbers is a gap.
function coarser(values, every) {
  const x = [], y = [];
  for (let i = 0; i < values.length; i += every) {
    const own = values.slice(i, i + every).filter((v) => v !== null);
    x.push(X[Math.min(i + every, X.length) - 1]);
    y.push(own.length ? own.reduce((a, b) => a + b, 0) / own.length : null);
  }
  return [x, y];
}

function lossSection() {
  const place = section(t("report.loss"), el("p", { class: "dim" }, t("report.loss.legend")));
  const controls = el("div", { class: "controls" });
  place.append(controls);
  const top = Math.max(1, Math.min(200, Math.floor(X.length / 4)));
  controls.append(slider("smoothing", t("report.smoothing"), 1, top, drawAll), slider("every", t("report.logged_every"), 1, top, drawAll));
  chart(place, "loss", () => {
    const [x, y] = coarser(S.loss, STATE.every);
    const shown = STATE.every > 1 ? y : smooth(S.loss, STATE.smoothing);
    const traces = [{ x: STATE.every > 1 ? x : X, y: shown, name: t("report.loss"), mode: "lines", line: { color: css("--note"), width: 1.6 }, connectgaps: false }];
    if (STATE.every === 1 && STATE.smoothing > 1) traces.unshift({ x: X, y: S.loss, name: t("report.each_step"), mode: "lines", line: { color: css("--line"), width: 1 } });
    if (DATA.evals.step && DATA.evals.step.length) traces.push({ x: DATA.evals.step, y: DATA.evals.eval_loss, name: t("report.eval_loss"), mode: "lines+markers", line: { color: css("--watch") } });
    const bad = X.filter((_, i) => S.loss[i] === null);
    const highest = S.loss.reduce((a, b) => (b !== null && b > a ? b : a), 0);
    if (bad.length) traces.push({ x: bad, y: bad.map(() => highest), name: t("report.not_finite"), mode: "markers", marker: { symbol: "x", color: css("--wrong"), size: 8 }, hovertemplate: "%{x}" });
    return traces;
  }, () => ({ shapes: marks(), xaxis: { title: { text: t("report.step") } } }));
}

function normSection() {
  if (!S.grad_norm) return;
  const finite = S.grad_norm.filter((v) => v !== null && v > 0).sort((a, b) => a - b);
  const q = (p) => finite[Math.min(finite.length - 1, Math.floor(p * finite.length))];
  const place = section("grad_norm", el("p", { class: "dim" }, t("report.band").replace("{low}", number(q(0.05))).replace("{high}", number(q(0.95)))));
  chart(place, "grad_norm", () => [
    { x: X, y: S.grad_norm, name: "grad_norm", mode: "lines", line: { color: css("--note"), width: 1.4 } },
  ], () => ({
    yaxis: { type: "log" }, xaxis: { title: { text: t("report.step") } },
    shapes: [...marks(), { type: "rect", xref: "paper", x0: 0, x1: 1, y0: q(0.05), y1: q(0.95), fillcolor: css("--good"), opacity: 0.12, line: { width: 0 }, layer: "below" }],
  }));
}

function scheduleSection() {
  const shown = [["learning_rate", "linear"], ["loss_scale", "log"]].filter(([name]) => S[name] && new Set(S[name]).size > 1);
  if (!shown.length) return;
  const place = el("div", { class: shown.length > 1 ? "two" : "" });
  section(t("report.schedule"), place);
  for (const [name, type] of shown) chart(place, name, () => [{ x: X, y: S[name], name, mode: "lines", line: { color: css("--note"), shape: "hv" } }], () => ({ yaxis: { type, exponentformat: "power" }, title: { text: name }, shapes: marks(), showlegend: false }));
}

function grid(name) {
  if (!decoded[name]) {
    const bytes = Uint8Array.from(atob(GRID.grids[name]), (c) => c.charCodeAt(0));
    decoded[name] = new Float32Array(bytes.buffer);
  }
  return decoded[name];
}

// The value of a metric at a cell, and its logarithm where colours follow that.
function cell(metric, site, bin, which = "max") {
  const i = site * GRID.bins.length + bin;
  if (metric === "norm") return grid("norm_" + which)[i];
  if (metric === "headroom") return GRID.dtypes[site] === "float16" ? FP16_MAX / grid("absmax")[i] : NaN;
  return grid(metric)[i];
}

function layerSection() {
  const place = section(t("report.layers"));
  if (!GRID) {
    place.append(el("p", {}, t(DATA.layers && DATA.layers.unreadable ? "report.layers.unreadable" : "report.layers.none")));
    return;
  }
  const metric = () => STATE.metric || "norm";
  const select = el("select", { id: "metric", "aria-label": t("report.metric"), onchange: () => { remember({ metric: select.value }); drawAll(); } },
    ...Object.keys(METRICS).map((name) => el("option", { value: name, selected: metric() === name }, t(METRICS[name]))));
  const search = el("input", { type: "search", id: "filter", placeholder: t("report.filter"), "aria-label": t("report.filter"), value: STATE.filter || "", oninput: () => { remember({ filter: search.value }); drawAll(); } });
  place.append(el("p", { class: "dim" }, t("report.layers.legend")), el("div", { class: "controls" }, select, search));
  const map = chart(place, "map", () => {
    const sites = shownSites(metric());
    const linear = metric() === "underflow", counts = ["nonfinite", "overflow"].includes(metric());
    const value = (s, b) => cell(metric(), s, b);
    const z = sites.map((s) => GRID.bins.map((_, b) => { const v = value(s, b); return Number.isNaN(v) ? null : linear ? v : counts ? Math.log10(v + 1) : v > 0 ? Math.log10(v) : -30; }));
    const smallest = z.reduce((least, row) => row.reduce((a, v) => (v !== null && v > -30 && v < a ? v : a), least), Infinity);
    return [{
      type: "heatmap", z: z.map((row) => row.map((v) => (v === -30 ? smallest : v))), x: GRID.bins.map((b) => (b[0] + b[1]) / 2), y: sites.map((_, i) => i), hoverinfo: "none", colorscale: metric() === "headroom" ? "Portland" : "Viridis", reversescale: metric() === "headroom",
      colorbar: { title: { text: linear ? "" : counts ? "log10(n + 1)" : "log10" }, thickness: 12 },
    }];
  }, () => {
    const sites = shownSites(metric()), many = sites.length > 45;
    const ticks = sites.map((_, i) => i).filter((i) => !many || i % Math.ceil(sites.length / 40) === 0);
    const narrow = innerWidth < 700;
    return { hovermode: "closest", xaxis: { title: { text: t("report.step") } }, yaxis: { autorange: "reversed", tickvals: narrow ? [] : ticks, ticktext: ticks.map((i) => plain(short(GRID.names[sites[i]], 44))), tickfont: { size: 10 } }, shapes: [] };
  }, "chart map", () => {
    const cellOf = (event) => {
      const point = event.points[0];
      return [shownSites(metric())[point.y], (point.pointNumber || point.pointIndex)[1]];
    };
    map.removeAllListeners("plotly_click");
    map.removeAllListeners("plotly_hover");
    map.on("plotly_hover", (event) => { hovered.textContent = described(...cellOf(event), metric()); });
    map.on("plotly_click", (event) => pick(detail, ...cellOf(event), metric()));
    const before = GRID.names.indexOf(STATE.site);
    if (before >= 0 && STATE.bin < GRID.bins.length) pick(detail, before, STATE.bin, metric());
  });
  const detail = el("div", {}), hovered = el("p", { id: "hovered", class: "dim" }, " ");
  place.append(hovered, el("p", { id: "cell", class: "dim" }, t("report.layers.click")), detail);
}

function shownSites(metric) {
  const wanted = (STATE.filter || "").toLowerCase(), key = metric === "norm" ? "norm_max" : metric === "headroom" ? "absmax" : metric;
  const n = GRID.bins.length, values = grid(key);
  return GRID.names.map((_, i) => i).filter((i) => {
    if (wanted && !GRID.names[i].toLowerCase().includes(wanted)) return false;
    if (metric === "norm" && /:(in|out)$/.test(GRID.names[i])) return false;
    if (metric === "headroom" && GRID.dtypes[i] !== "float16") return false;
    for (let b = 0; b < n; b++) if (!Number.isNaN(values[i * n + b])) return true;
    return false;
  });
}

function described(site, bin, metric) {
  const [first, last] = GRID.bins[bin], steps = first === last ? `${first}` : `${first}–${last}`;
  const of = (which) => number(cell(metric, site, bin, which), 7);
  const value = metric === "norm" && first !== last ? `${of("min")} / ${of("mean")} / ${of("max")}` : of("max");
  return `${GRID.names[site]}  ${t("report.step")} ${steps}  ${t(METRICS[metric])} ${value}`;
}

function pick(place, site, bin, metric) {
  remember({ site: GRID.names[site], bin });
  const last = GRID.bins[bin][1];
  document.getElementById("cell").textContent = described(site, bin, metric);
  document.getElementById("cell").dataset.value = String(cell(metric, site, bin));
  place.replaceChildren(el("div", { id: "history", class: "chart" }), el("div", { id: "exponents", class: "chart" }));
  place.className = "two";
  const x = GRID.bins.map((b) => b[1]), y = (which) => GRID.bins.map((_, b) => { const v = cell(metric, site, b, which); return Number.isNaN(v) ? null : v; });
  const layout = (title) => ({ title: { text: plain(short(title, 50)), font: { size: 12 } }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--text") }, margin: { l: 56, r: 12, t: 40, b: 40 }, showlegend: false });
  const traces = metric === "norm"
    ? [{ x, y: y("max"), line: { width: 0 }, mode: "lines", name: "max" }, { x, y: y("min"), fill: "tonexty", line: { width: 0 }, mode: "lines", name: "min" }, { x, y: y("mean"), mode: "lines", name: "mean", line: { color: css("--note") } }]
    : [{ x, y: y("max"), mode: "lines", name: t(METRICS[metric]), line: { color: css("--note") } }];
  const shapes = marks();
  for (const coming of GRID.forecasts.filter((f) => f.site === GRID.names[site] && metric === "absmax"))
    traces.push({ x: [coming.step, coming.predicted_step], y: [coming.peak, FP16_MAX], mode: "lines", name: t("report.forecast"), line: { dash: "dash", color: css("--wrong") } });
  if (metric === "absmax" && GRID.dtypes[site] === "float16") shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: FP16_MAX, y1: FP16_MAX, line: { color: css("--wrong"), width: 1 } });
  Plotly.react("history", traces, { ...layout(GRID.names[site]), yaxis: { type: metric === "underflow" ? "linear" : "log", gridcolor: css("--line") }, xaxis: { title: { text: t("report.step") } }, shapes }, { displaylogo: false, responsive: true });
  const rows = GRID.histograms.filter((row) => row.sites.includes(site));
  if (!rows.length) {
    document.getElementById("exponents").replaceChildren(el("p", { class: "dim" }, t("report.no_histogram")));
    return;
  }
  const row = rows.reduce((a, b) => (Math.abs(b.step - last) < Math.abs(a.step - last) ? b : a)), k = row.sites.indexOf(site);
  const counts = Uint8Array.from(atob(row.counts[k]), (c) => c.charCodeAt(0));
  const exponent = [...counts].map((_, i) => row.first[k] + i - 127);
  Plotly.react("exponents", [{ type: "bar", x: exponent, y: [...counts].map((c) => 2 ** (c / 8) - 1), marker: { color: css("--note") }, hovertemplate: "2^%{x}: %{y:.3s}<extra></extra>" }],
    { ...layout(t("report.exponents").replace("{step}", row.step)), yaxis: { type: "log", gridcolor: css("--line") }, xaxis: { title: { text: t("report.exponent") } } }, { displaylogo: false, responsive: true });
}

function resourceSection() {
  const memory = ["memory_reserved_gib", "memory_allocated_gib", "host_memory_gib"].filter((name) => S[name]);
  if (!memory.length && !S.step_seconds) return;
  const place = el("div", { class: "two" });
  section(t("report.resources"), place);
  if (memory.length) chart(place, "memory", () => [
    ...memory.map((name) => ({ x: X, y: S[name], name, mode: "lines" })),
    ...(S.max_sequence_length ? [{ x: X, y: S.max_sequence_length, name: t("report.longest"), mode: "lines", yaxis: "y2", line: { width: 1, color: css("--dim") }, opacity: 0.5 }] : []),
  ], () => ({ title: { text: t("report.memory") }, yaxis: { title: { text: "GiB" }, rangemode: "tozero" }, yaxis2: { overlaying: "y", side: "right", showgrid: false, title: { text: t("report.tokens") } } }));
  if (S.tokens_per_second) chart(place, "throughput", () => [{ x: X, y: S.tokens_per_second, name: t("report.tokens_per_second"), mode: "lines" }], () => ({ title: { text: t("report.throughput") }, yaxis: { rangemode: "tozero" }, showlegend: false }));
  if (S.step_seconds) chart(place, "time", () => {
    const cumulated = (values) => { let sum = 0; return values.map((v) => (sum += v || 0)); };
    const minutes = (values) => values.map((v) => (v === null ? null : v / 60));
    const parts = [["report.time.steps", cumulated(S.step_seconds)], ["report.time.evaluations", S.eval_seconds_total], ["report.time.checkpoints", S.save_seconds_total]].filter(([, v]) => v);
    return parts.map(([key, values]) => ({ x: X, y: minutes(values), name: t(key), mode: "lines", stackgroup: "time" }));
  }, () => ({ title: { text: t("report.time") }, yaxis: { title: { text: t("report.minutes") } } }));
  if (S.step_seconds) chart(place, "step_seconds", () => [{ x: X, y: S.step_seconds, name: t("report.step_seconds"), mode: "lines" }], () => ({ title: { text: t("report.step_seconds") }, yaxis: { rangemode: "tozero" }, showlegend: false }));
}

start(build);
