"use strict";
// A line chart: uPlot with a legend, a tooltip, a table of its values, and keys. One stop of the tab key each.
//   chart({id, title, unit, lines: [{label, x, y, colour, ...}], marks, band, log, zero, axis, caption})
// x and y are lists of one length, null where there is no value. A line may be `points`, `stepped`, `filled`, `dashed`,
// `thin`, of the axis on the `right` with a `unit` of its own; lines of one `group` are shown and hidden together;
// an `exact` one has no value between its points.
const CHARTS = [];
const LOOKS = new Map(); // by chart what was chosen: a logarithmic scale, groups that are hidden, an open table
const WHOLE = [1, 2, 5].flatMap((n) => [...Array(13).keys()].map((e) => n * 10 ** e)).sort((a, b) => a - b);
let ZOOM = null; // [from, to] of the horizontal axis, the same for every chart
const NEAR = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const found = CHARTS.find((one) => one.place === entry.target);
      if (entry.isIntersecting && found && !found.plot) found.draw();
    }
  },
  { rootMargin: "400px" },
);
const RESIZED = new ResizeObserver((entries) => {
  for (const entry of entries) {
    const found = CHARTS.find((one) => one.place === entry.target);
    if (found && found.plot && entry.contentRect.width > 0)
      found.plot.setSize({ width: entry.contentRect.width, height: entry.contentRect.height });
  }
});

function forgetCharts() {
  for (const one of CHARTS) if (one.plot) one.plot.destroy();
  CHARTS.length = 0;
  NEAR.disconnect();
  RESIZED.disconnect();
}

function redrawCharts() {
  for (const one of CHARTS) one.update();
}

function zoomTo(range) {
  ZOOM = range;
  for (const one of CHARTS)
    if (one.plot && one.spec.shared !== false) {
      const [min, max] = extentOf(one.spec);
      one.plot.setScale("x", { min, max });
    }
  const out = document.getElementById("zoom-out");
  if (out) out.hidden = !range;
}

const zoomOut = () => el("button", { id: "zoom-out", hidden: !ZOOM, onclick: () => zoomTo(null) }, t("page.zoom_out"));

// `make` is called for each drawing and returns the spec; the figure keeps its place.
function chart(parent, id, make, className = "") {
  if (!LOOKS.has(id)) LOOKS.set(id, { log: null, hidden: new Set(), table: false });
  const one = { id, make, plot: null, look: LOOKS.get(id), table: null };
  const small = (name, key, act) =>
    el("button", { class: "small", tabindex: "-1", "data-act": name, onclick: act }, t(key));
  one.titled = className !== "alone"; // else the section's heading says it
  one.legend = el("span", { class: "legend" });
  one.logButton = small("log", "page.log", () => {
    one.look.log = !one.look.log;
    one.draw();
  });
  one.zoomButton = small("zoom", "page.zoom_in", () => zoomIn(one));
  one.place = el("div", { class: "plot" });
  one.tip = el("div", { class: "tip", hidden: true });
  one.live = el("p", { class: "unseen", "aria-live": "polite" });
  one.caption = el("figcaption", {});
  one.head = el("h3", {});
  one.figure = el(
    "figure",
    { id, class: "chart " + className, tabindex: "0", onkeydown: (event) => keys(one, event) },
    el(
      "div",
      { class: "head" },
      el("div", { class: "says" }, one.head, one.legend),
      one.zoomButton,
      one.logButton,
      small("table", "page.table", () => toggleTable(one)),
    ),
    one.place,
    one.tip,
    one.caption,
    one.live,
  );
  one.draw = () => {
    draw(one);
  };
  one.update = () => {
    describe(one);
    if (one.plot) draw(one);
  };
  parent.append(one.figure);
  CHARTS.push(one);
  describe(one);
  if (one.look.table) openTable(one);
  NEAR.observe(one.place);
  RESIZED.observe(one.place);
  return one;
}

function describe(one) {
  const spec = (one.spec = one.make());
  if (one.look.log === null) one.look.log = Boolean(spec.log);
  one.head.replaceChildren(
    one.titled ? spec.title : "",
    spec.unit ? el("span", { class: "dim" }, " " + spec.unit) : "",
  );
  one.legend.replaceChildren(
    ...(spec.lines.length > 1 || spec.band ? legendLines(spec).map((line) => legendKey(one, line)) : []),
    ...(spec.band ? [el("span", {}, swatch(css("--band")), spec.band.label)] : []),
  );
  one.caption.replaceChildren(...(spec.caption || []).map((text) => el("span", {}, text + " ")));
  one.figure.setAttribute("aria-label", `${spec.title}${spec.unit ? ", " + spec.unit : ""}. ${t("page.chart.keys")}`);
  const values = spec.lines.flatMap((line) => line.y).filter((v) => v !== null);
  one.logButton.hidden = (spec.log === undefined && spec.zero === true) || !values.length || values.some((v) => v <= 0);
  if (one.logButton.hidden && values.some((v) => v <= 0)) one.look.log = false;
  one.logButton.setAttribute("aria-pressed", String(one.look.log));
  one.zoomButton.hidden = spec.shared === false;
  if (one.table) fillTable(one);
}

const groupOf = (line) => line.group ?? line.column ?? line.label;
const legendLines = (spec) => spec.lines.filter((line) => !line.quiet);

// A line's name, which hides it and all of its group and shows them again. The last one stays.
function legendKey(one, line) {
  const hidden = one.look.hidden.has(groupOf(line)),
    text = (line.legend || line.label) + (line.unit ? ` (${line.unit})` : "");
  if (one.spec.lines.every((other) => groupOf(other) === groupOf(line))) return el("span", {}, swatch(css(line.colour)), text);
  return el(
    "button",
    { tabindex: "-1", class: "key", "aria-pressed": String(!hidden), onclick: () => toggleLine(one, line) },
    swatch(css(line.colour)),
    text,
  );
}

function toggleLine(one, line) {
  const { hidden } = one.look,
    group = groupOf(line);
  if (!hidden.delete(group) && one.spec.lines.some((other) => !hidden.has(groupOf(other)) && groupOf(other) !== group))
    hidden.add(group);
  one.update();
}

// All points of all lines over one list of x. A hole of a line's own is null, a place it knows nothing of undefined.
function joined(spec) {
  return spec.lines.length ? uPlot.join(spec.lines.map((line) => sorted(line))) : [[], []];
}

function sorted(line) {
  const kept = line.x.map((_, i) => i).filter((i) => line.x[i] !== null);
  return [kept.map((i) => line.x[i]), kept.map((i) => line.y[i])];
}

function extentOf(spec) {
  if (ZOOM && spec.shared !== false) return ZOOM;
  const [from, to] = spec.extent || [spec.lines[0].x[0], spec.lines[0].x.at(-1)];
  return from === to || from === undefined ? [(from || 0) - 1, (from || 0) + 1] : [from, to];
}

function rangeOf(one, log, zero) {
  return (u, least, most) => {
    const spec = one.spec;
    if (least === null || most === null || least === undefined) return log ? [1, 10] : [0, 1];
    for (const value of spec.band ? [spec.band.low, spec.band.high] : []) {
      least = Math.min(least, value);
      most = Math.max(most, value);
    }
    const size = (value) => 10 ** Math.floor(Math.log10(value)),
      snap = (value, way) => Number((way(value / size(value)) * size(value)).toPrecision(3));
    if (log) return [snap(least / 1.02, Math.floor), snap(most * 1.02, Math.ceil)];
    const room = (most - least || Math.abs(most) || 1) * 0.06;
    return [(zero || spec.zero) && least >= 0 ? 0 : least - room, most + room];
  };
}

function draw(one) {
  const spec = (one.spec = one.make()),
    { width, height } = one.place.getBoundingClientRect(),
    log = one.look.log;
  one.logButton.setAttribute("aria-pressed", String(log));
  if (one.plot) one.plot.destroy();
  const axis = (more) => ({
    stroke: css("--dim"),
    grid: { stroke: css("--grid"), width: 1 },
    ticks: { stroke: css("--grid"), width: 1, size: 4 },
    font: "12px system-ui, sans-serif",
    labelFont: "12px system-ui, sans-serif",
    gap: 4,
    ...more,
  });
  const right = spec.lines.find((line) => line.right);
  const wide = (u, values) => 14 + 7 * Math.max(2, ...(values || []).map((text) => String(text || "").length));
  const options = {
    width: Math.max(width, 80),
    height: Math.max(height, 80),
    padding: [10, right ? 0 : 24, 0, 0],
    legend: { show: false },
    cursor: {
      y: false,
      sync: spec.shared === false ? undefined : { key: "steps", scales: ["x", null] },
      drag: { x: true, y: false, setScale: false },
      points: { size: 7 },
      bind: {
        dblclick: () => () => {
          zoomTo(null);
          return null;
        },
      },
    },
    scales: {
      x: { time: false, range: () => extentOf(one.spec) },
      y: { distr: log ? 3 : 1, range: rangeOf(one, log) },
      ...(right ? { right: { range: rangeOf(one, false, true) } } : {}),
    },
    axes: [
      axis({
        size: 24,
        labelSize: 18,
        labelGap: 0,
        label: spec.axis,
        values: (u, splits) => splits.map(tick),
        space: 60,
        ...(spec.lines.every((line) => line.x.every((x) => x === null || Number.isInteger(x))) ? { incrs: WHOLE } : {}),
      }),
      axis({
        scale: "y",
        size: wide,
        values: (u, splits) => splits.map((v) => (v === null ? "" : tick(v))),
        space: 32,
      }),
      ...(right
        ? [
            axis({
              scale: "right",
              side: 1,
              size: wide,
              grid: { show: false },
              values: (u, splits) => splits.map(tick),
              space: 32,
            }),
          ]
        : []),
    ],
    series: [{}, ...spec.lines.map((line) => ({ ...curve(line), show: !one.look.hidden.has(groupOf(line)) }))],
    hooks: {
      drawClear: [
        (u) => {
          if (one.spec.band) paintBand(u, one.spec.band);
        },
      ],
      draw: [(u) => paintMarks(u, one.spec.marks || [])],
      setCursor: [(u) => point(one, u)],
      setSelect: [
        (u) => {
          if (u.select.width > 4)
            zoomTo([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        },
      ],
    },
  };
  one.plot = new uPlot(options, joined(spec), one.place);
}

function curve(line) {
  const colour = css(line.colour),
    alone = (u, index) => {
      const y = u.data[index],
        found = [];
      for (let i = 0; i < y.length; i++) if (y[i] != null && !near(y, i, -1) && !near(y, i, 1)) found.push(i);
      return found;
    };
  return {
    scale: line.right ? "right" : "y",
    stroke: colour,
    width: line.thin ? 1 : 1.75,
    dash: line.dashed ? [5, 4] : undefined,
    fill: line.filled ? colour + "33" : undefined,
    paths: line.stepped
      ? uPlot.paths.stepped({ align: -1 })
      : line.bars
        ? uPlot.paths.bars({ size: [0.9] })
        : undefined,
    points: line.points
      ? { show: true, size: 6, fill: css("--back") }
      : { show: true, size: 5, fill: colour, filter: (u, index) => alone(u, index) },
  };
}

// Whether a line goes on from i to its next point on that side.
function near(y, i, way) {
  for (let j = i + way; j >= 0 && j < y.length; j += way) if (y[j] !== undefined) return y[j] !== null;
  return false;
}

// New points of the same lines: cursor, zoom and what is hidden stay, and no button is another one under a finger.
function feed(one) {
  one.spec = one.make();
  if (one.table) fillTable(one);
  if (!one.plot) return;
  if (one.plot.series.length === one.spec.lines.length + 1) one.plot.setData(joined(one.spec));
  else draw(one);
}

// What is on the screen now, at once: nothing flashes when a page is drawn again.
function drawSeen() {
  for (const one of CHARTS) {
    const { top, bottom } = one.place.getBoundingClientRect();
    if (!one.plot && bottom > 0 && top < innerHeight) one.draw();
  }
}

// Nothing comes into view on paper.
function drawAll() {
  for (const one of CHARTS) if (!one.plot) one.draw();
}
addEventListener("beforeprint", drawAll);
