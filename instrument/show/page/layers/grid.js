"use strict";
// The layers of a run as a model: layers by projections of one tensor at the step under the slider, each projection over
// time beside it, and the history and exponents of the cell under the cursor.
let GRID = null;
const FP16_MAX = 65504;
const QUANTITIES = {
  norm: "report.metric.norm",
  absmax: "report.metric.absmax",
  headroom: "report.metric.headroom",
  nonfinite: "report.metric.nonfinite",
  overflow: "report.metric.overflow",
  underflow: "report.metric.underflow",
};
// In the order in which they are offered.
const TENSORS = {
  "lora_B.grad": "report.tensor.lora_B.grad",
  "lora_A.grad": "report.tensor.lora_A.grad",
  out: "report.tensor.out",
  grad_out: "report.tensor.grad_out",
  grad_in: "report.tensor.grad_in",
  in: "report.tensor.in",
};
let decoded = {};
let shown = null; // what is drawn: {sites, rows, columns, from, to, log}

function values(name) {
  const own = GRID.grids[name];
  if (!own) return null;
  if (own.as) return values(own.as);
  return (decoded[name] ??= new Float32Array(Uint8Array.from(atob(own.base64), (c) => c.charCodeAt(0)).buffer));
}

// The value of a quantity at a site in a range of steps; NaN where nothing is known.
function cell(quantity, site, bin, which = "max") {
  const source = values(quantity === "norm" ? "norm_" + which : quantity === "headroom" ? "absmax" : quantity);
  const value = source ? source[site * GRID.bins.length + bin] : NaN;
  return quantity !== "headroom" ? value : GRID.dtypes[site] === "float16" ? FP16_MAX / value : NaN;
}

const isKnown = (quantity, site) => GRID.bins.some((_, bin) => !Number.isNaN(cell(quantity, site, bin)));
const sitesOf = (tensor) =>
  GRID.places.map((_, site) => site).filter((site) => GRID.tensors[GRID.places[site][2]] === tensor);

function layerSection() {
  const place = section("layers", t("report.layers"));
  const before = GRID;
  GRID = DATA.layers && DATA.layers.names ? DATA.layers : null;
  if (GRID !== before) decoded = {};
  if (!GRID) {
    place.append(
      el("p", {}, t(DATA.layers && DATA.layers.unreadable ? "report.layers.unreadable" : "report.layers.none")),
    );
    return;
  }
  const order = Object.keys(TENSORS),
    rank = (name) => order.indexOf(name) + 1 || order.length + 1;
  const tensors = [...GRID.tensors].sort((a, b) => rank(a) - rank(b)).map((name) => [name, named(name)]);
  const controls = el("div", { class: "controls" }),
    quantities = el("span", {}),
    body = el("div", { id: "model" });
  const offer = () => {
    const own = sitesOf(STATE.tensor),
      possible = Object.keys(QUANTITIES).filter((name) => own.some((site) => isKnown(name, site)));
    quantities.replaceChildren(
      choice(
        "quantity",
        possible.map((name) => [name, t(QUANTITIES[name])]),
        t("report.metric"),
        refresh,
      ),
    );
  };
  const refresh = () => {
    model(body);
  };
  const search = el("input", {
    type: "search",
    id: "filter",
    placeholder: "q_proj",
    value: STATE.filter || "",
    oninput: () => {
      remember({ filter: search.value });
      refresh();
    },
  });
  const last = GRID.bins.length - 1;
  const play = el(
    "button",
    { id: "play", "aria-pressed": "false", onclick: () => playing(play) },
    "▶ " + t("report.play"),
  );
  const tabled = el(
    "button",
    { id: "map-table", class: "small", onclick: () => (remember({ cells: !STATE.cells }), paint()) },
    t("page.table"),
  );
  controls.append(
    choice("tensor", tensors, t("report.tensor"), () => {
      offer();
      refresh();
    }),
    quantities,
    el("label", {}, el("span", {}, t("report.filter")), search),
  );
  place.append(el("p", { class: "dim" }, t("report.layers.legend")), controls);
  offer();
  if (last > 0) {
    STATE.bin ??= last;
    place.append(
      el(
        "div",
        { class: "controls over" },
        play,
        slider(
          "bin",
          t("report.at_step"),
          0,
          last,
          () => paint(),
          (bin) => stepsOf(bin),
        ),
        tabled,
      ),
    );
  } else {
    STATE.bin = 0;
    controls.append(tabled);
  }
  place.append(body, el("p", { id: "cell", "aria-live": "polite" }), el("div", { id: "detail", class: "two" }));
  refresh();
}

const named = (tensor) => (TENSORS[tensor] ? t(TENSORS[tensor]) : tensor);
const stepsOf = (bin) => {
  const [first, last] = GRID.bins[bin];
  return first === last ? number(first) : `${number(first)}–${number(last)}`;
};

function playing(button) {
  const on = button.getAttribute("aria-pressed") !== "true",
    input = document.getElementById("bin");
  button.setAttribute("aria-pressed", String(on));
  button.textContent = on ? "❚❚ " + t("report.pause") : "▶ " + t("report.play");
  if (!on) return;
  if (Number(input.value) >= Number(input.max)) input.value = 0;
  const next = () => {
    if (!button.isConnected || button.getAttribute("aria-pressed") !== "true") return;
    if (Number(input.value) >= Number(input.max)) {
      playing(button);
      return;
    }
    input.value = Number(input.value) + 1;
    input.dispatchEvent(new Event("input"));
    setTimeout(next, Math.max(40, 8000 / GRID.bins.length));
  };
  next();
}

// What is to be drawn: the sites of the tensor that match the filter, the range of their values over all steps.
function chosen() {
  const wanted = (STATE.filter || "").trim().toLowerCase(),
    quantity = STATE.quantity;
  const sites = sitesOf(STATE.tensor).filter(
    (site) => GRID.names[site].toLowerCase().includes(wanted) && isKnown(quantity, site),
  );
  const places = (k) => [...new Set(sites.map((site) => GRID.places[site][k]))].sort((a, b) => a - b);
  let from = Infinity,
    to = -Infinity;
  for (const site of sites)
    for (let bin = 0; bin < GRID.bins.length; bin++) {
      const value = cell(quantity, site, bin);
      if (Number.isNaN(value)) continue;
      if (value > to) to = value;
      if (value > 0 && value < from) from = value;
    }
  const rows = places(0),
    columns = places(1),
    at = new Map(sites.map((site) => [GRID.places[site][0] + "," + GRID.places[site][1], site]));
  return {
    sites,
    rows,
    columns,
    at,
    from: Math.min(from, to),
    to,
    log: quantity !== "underflow" && from < to,
    bad: quantity === "headroom",
  };
}

function model(body) {
  shown = chosen();
  if (!shown.sites.length) {
    body.replaceChildren(el("p", { class: "empty" }, t("report.no_match", { filter: STATE.filter || "" })));
    document.getElementById("detail").replaceChildren();
    document.getElementById("cell").textContent = "";
    return;
  }
  const before = shown.sites.find((site) => GRID.names[site] === STATE.site);
  const widest = shown.sites.reduce((a, b) =>
    cell(STATE.quantity, b, STATE.bin) > (cell(STATE.quantity, a, STATE.bin) || 0) ? b : a,
  );
  remember({ site: GRID.names[before ?? widest] });
  const map = el("canvas", {
    id: "map",
    tabindex: "0",
    role: "img",
    onkeydown: walk,
    onclick: (event) => pick(hit(event)),
    onmousemove: (event) => hover(hit(event), event),
    onmouseleave: () => hover(undefined),
  });
  const bar = el("canvas", { id: "bar", "aria-hidden": "true" });
  const times = el(
    "div",
    { class: "times" },
    ...shown.columns.map((column) =>
      el(
        "div",
        {},
        el("h4", { title: GRID.columns[column] }, shortName(column)),
        el("canvas", { "data-column": column, "aria-hidden": "true", onclick: (event) => chooseTime(event, column) }),
      ),
    ),
  );
  body.replaceChildren(
    el(
      "div",
      { class: "maps" },
      el(
        "div",
        { class: "mapside" },
        el("div", { class: "scroll" }, map),
        el("p", { class: "dim bar" }, t(QUANTITIES[STATE.quantity]), bar),
        el("div", { id: "hovered", class: "tip", hidden: true }),
        el("div", { id: "cells" }),
      ),
      el("div", {}, el("h3", {}, t("report.over_time")), times),
    ),
  );
  paint();
}
