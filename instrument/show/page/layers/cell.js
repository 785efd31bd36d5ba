"use strict";
// The cell of the layer grid under the cursor: its value in words, its history, and its exponents.

function hit(event) {
  const box = event.currentTarget.getBoundingClientRect(),
    own = shown.box;
  const k = Math.floor((event.clientX - box.left - own.left) / own.across),
    i = Math.floor((event.clientY - box.top - own.top) / own.down);
  return shown.at.get(shown.rows[i] + "," + shown.columns[k]);
}

// Arrow keys move the cursor to the next cell that is there.
function walk(event) {
  const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!way) return;
  event.preventDefault();
  const site = shown.sites.find((one) => GRID.names[one] === STATE.site),
    [row, column] = GRID.places[site];
  let i = shown.rows.indexOf(row) + way[0],
    k = shown.columns.indexOf(column) + way[1];
  for (; i >= 0 && k >= 0 && i < shown.rows.length && k < shown.columns.length; i += way[0], k += way[1]) {
    const next = shown.at.get(shown.rows[i] + "," + shown.columns[k]);
    if (next !== undefined) {
      pick(next);
      return;
    }
  }
}

function pick(site) {
  if (site === undefined) return;
  remember({ site: GRID.names[site] });
  paint();
}

function described(site) {
  const quantity = STATE.quantity,
    [first, last] = GRID.bins[STATE.bin],
    of = (which) => number(cell(quantity, site, STATE.bin, which), 5);
  const value =
    quantity === "norm" && first !== last
      ? t("report.range", { min: of("min"), mean: of("mean"), max: of("max") })
      : of("max") + (quantity === "headroom" ? "×" : "");
  return `${GRID.names[site]} · ${t("page.step_n", { step: stepsOf(STATE.bin) })} · ${t(QUANTITIES[quantity])} ${value}`;
}

function hover(site, event) {
  const tip = document.getElementById("hovered");
  tip.hidden = site === undefined;
  if (tip.hidden) return;
  tip.textContent = described(site);
  const side = tip.parentElement.getBoundingClientRect(),
    x = event.clientX - side.left + 14;
  tip.style.left = Math.max(0, Math.min(x, side.width - tip.offsetWidth)) + "px";
  tip.style.top = event.clientY - side.top + 18 + "px";
}

// The grid as a table, for those who do not see it or want the numbers.
function tellCells() {
  const place = document.getElementById("cells"),
    button = document.getElementById("map-table");
  button.setAttribute("aria-pressed", String(Boolean(STATE.cells)));
  if (!STATE.cells) {
    place.replaceChildren();
    return;
  }
  const head = (text) => el("th", { scope: "col" }, text);
  const value = (row, column) => {
    const site = shown.at.get(row + "," + column);
    return site === undefined ? "" : number(cell(STATE.quantity, site, STATE.bin));
  };
  const table = el(
    "table",
    { class: "values" },
    el("caption", {}, `${t(QUANTITIES[STATE.quantity])}, ${t("page.step_n", { step: stepsOf(STATE.bin) })}`),
    el("thead", {}, el("tr", {}, head(t("report.layer")), ...shown.columns.map((column) => head(shortName(column))))),
    el(
      "tbody",
      {},
      ...shown.rows.map((row) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, GRID.rows[row] || "–"),
          ...shown.columns.map((column) => el("td", {}, value(row, column))),
        ),
      ),
    ),
  );
  place.replaceChildren(scrolling(`${t("report.layers")}: ${t("page.table")}`, table));
}

const NORMS = { max: "report.series.max", mean: "report.series.mean", min: "report.series.min" };
let detailed = "",
  measured = "";
function tell(site) {
  const place = document.getElementById("cell");
  place.textContent = described(site);
  place.dataset.value = String(cell(STATE.quantity, site, STATE.bin));
  const rows = GRID.histograms.filter((row) => row.sites.includes(site)),
    end = GRID.bins[STATE.bin][1];
  const row = rows.length ? rows.reduce((a, b) => (Math.abs(b.step - end) < Math.abs(a.step - end) ? b : a)) : null;
  const key = [site, STATE.quantity, row && row.step, LANGUAGE()].join();
  const detail = document.getElementById("detail");
  if (key === detailed && detail.childElementCount) return;
  detailed = key;
  if (measured !== STATE.quantity) LOOKS.delete("history"); // another quantity, another scale
  measured = STATE.quantity;
  for (const id of ["history", "exponents"]) {
    const at = CHARTS.findIndex((one) => one.id === id);
    if (at >= 0) {
      if (CHARTS[at].plot) CHARTS[at].plot.destroy();
      CHARTS.splice(at, 1);
    }
  }
  detail.replaceChildren();
  chart(detail, "history", () => historyOf(site));
  if (row) chart(detail, "exponents", () => exponentsOf(site, row));
  else detail.append(el("p", { class: "dim" }, undistributed()));
}

function undistributed() {
  const every = GRID.histogram_every;
  if (GRID.histograms.length || !(every > GRID.bins.at(-1)[1])) return t("report.no_histogram");
  return t("report.no_histogram_yet", { every: number(every), steps: number(GRID.bins.at(-1)[1]) });
}

// A bin stands at its last step; on another axis than steps the cell's own is kept, for bins are ranges of steps.
function historyOf(site) {
  const quantity = STATE.quantity,
    x = GRID.bins.map(([, last]) => last),
    whole = GRID.bins.every(([first, last]) => first === last);
  const y = (which) =>
    x.map((_, bin) => {
      const v = cell(quantity, site, bin, which);
      return Number.isFinite(v) ? v : null;
    });
  const lines =
    quantity === "norm" && !whole
      ? [
          ["max", "--c2"],
          ["mean", "--c1"],
          ["min", "--c3"],
        ].map(([which, colour]) => ({
          label: t(NORMS[which]),
          x,
          y: y(which),
          colour,
          thin: which !== "mean",
        }))
      : [{ label: t(QUANTITIES[quantity]), x, y: y("max"), colour: "--c1" }];
  for (const coming of GRID.forecasts.filter((one) => one.site === GRID.names[site] && quantity === "absmax"))
    lines.push({
      label: t("report.forecast"),
      x: [coming.step, coming.predicted_step],
      y: [coming.peak, FP16_MAX],
      colour: "--wrong",
      dashed: true,
    });
  return {
    id: "history",
    title: GRID.names[site],
    unit: "",
    log: quantity !== "underflow",
    axis: t("page.axis.step"),
    lines,
    shared: STATE.axis === "step" || !STATE.axis,
    extent: [x[0], x.at(-1)],
    marks: DATA.marks
      .filter((mark) => !mark.on)
      .map((mark) => ({ kind: mark.kind, x: mark.at.step, text: said(mark.text) })),
  };
}

function exponentsOf(site, row) {
  const k = row.sites.indexOf(site),
    counts = Uint8Array.from(atob(row.counts[k]), (c) => c.charCodeAt(0));
  const x = [...counts].map((_, i) => row.first[k] + i - 127),
    y = [...counts].map((c) => Math.round(2 ** (c / 8) - 1));
  return {
    id: "exponents",
    title: t("report.exponents", { step: number(row.step) }),
    unit: "",
    zero: true,
    axis: t("report.exponent"),
    shared: false,
    extent: [x[0] - 0.6, x.at(-1) + 0.6],
    lines: [{ label: t("report.values"), x, y, colour: "--c1", bars: true, filled: true }],
  };
}
