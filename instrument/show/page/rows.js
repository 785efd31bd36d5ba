"use strict";
// The training rows of a run: mean loss against the norm of its gradient, a point each, and the row under the cursor in
// words. One stop of the tab key; arrow keys go through the rows, the worst first.
const ROW_TABLE = 100;
const ROW_KINDS = [
  { key: "report.scatter.others", colour: "--c5", sign: "·" },
  { key: "report.scatter.not_finite", colour: "--wrong", sign: "✕" },
  { key: "report.scatter.loss", colour: "--c2", sign: "▲" },
  { key: "report.scatter.grad", colour: "--c4", sign: "■" },
  { key: "report.scatter.duplicate", colour: "--c6", sign: "◆" },
];
const ROW_COURSES = [
  "report.scatter.learned",
  "report.scatter.forgotten",
  "report.scatter.never",
  "report.scatter.steady",
  "report.scatter.once",
];
let POINTS = null; // where each row was drawn: {x, y} in CSS pixels, null for one that has no place

function rowSection() {
  const found = DATA.rows;
  if (!found) return;
  const at = STATE.row === undefined ? 0 : Math.max(0, found.rows.indexOf(STATE.row));
  STATE.row = found.rows[at];
  const canvas = el("canvas", {
      id: "scatter",
      tabindex: "0",
      role: "img",
      "aria-label": t("report.scatter.keys"),
      onkeydown: walkRows,
      onclick: (event) => pickRow(nearestRow(event)),
    }),
    button = el("button", { class: "small", id: "rows-table", tabindex: "-1", onclick: toggleRows }, t("page.table"));
  const notes = [
    found.rows.length < found.of ? t("report.scatter.some", { n: number(found.rows.length), of: number(found.of) }) : "",
    found.whole ? "" : t("report.scatter.part"),
    t(found.texts ? "report.scatter.texts" : "report.scatter.no_texts"),
  ];
  section(
    "rows",
    t("report.scatter"),
    el("p", {}, t("report.scatter.says", { flagged: number(found.flagged), of: number(found.of) })),
    el("p", { class: "dim" }, t("report.scatter.cannot")),
    el("div", { class: "legend" }, ...rowLegend(found), button),
    el(
      "div",
      { class: "maps" },
      el("div", { class: "mapside" }, canvas, el("div", { id: "rows-values" })),
      el("div", {}, el("p", { id: "row-said", "aria-live": "polite" }), el("div", { id: "row-read" })),
    ),
    el("p", { class: "dim" }, notes.filter(Boolean).join(" ")),
  );
  new ResizeObserver(paintRows).observe(canvas.parentElement);
  paintRows();
  readRow(at);
  fillRows();
}

function rowLegend(found) {
  return ROW_KINDS.map((kind, i) => [kind, found.kind.filter((own) => own === i).length])
    .filter(([, n]) => n)
    .map(([kind, n]) => {
      const sign = el("b", { "aria-hidden": "true" }, kind.sign + " ");
      sign.style.color = css(kind.colour);
      return el("span", {}, sign, `${t(kind.key)} ${number(n)}`);
    });
}

// A scale from values to pixels; logarithmic where they span more than a decade. What is not known stands at the end.
function rowScale(values, from, to) {
  const known = values.filter((v) => v !== null && v > 0),
    least = Math.min(...known),
    most = Math.max(...known),
    log = most > 10 * least,
    f = log ? Math.log : (v) => v;
  const room = (f(most) - f(least) || 1) * 0.04,
    [low, high] = [f(least) - room, f(most) + room];
  const place = (v) => (v === null ? to : from + ((f(Math.max(v, log ? least : v)) - low) / (high - low)) * (to - from));
  return { place, ticks: known.length ? rowTicks(least, most, log) : [] };
}

function rowTicks(least, most, log) {
  if (log) {
    const found = [];
    for (let e = Math.floor(Math.log10(least)); e <= Math.log10(most); e++) for (const n of [1, 2, 5]) found.push(n * 10 ** e);
    const seen = found.filter((v) => v >= least && v <= most);
    return seen.length > 8 ? seen.filter((v) => Number.isInteger(Math.round(Math.log10(v) * 1e9) / 1e9)) : seen;
  }
  const wide = most - least || 1,
    step = [1, 2, 5, 10].map((n) => n * 10 ** Math.floor(Math.log10(wide / 4))).find((v) => wide / v <= 5);
  return [...Array(8).keys()].map((i) => (Math.ceil(least / step) + i) * step).filter((v) => v <= most);
}

function paintRows() {
  const canvas = document.getElementById("scatter"),
    found = DATA.rows;
  if (!canvas || !found) return;
  const width = Math.max(260, canvas.parentElement.clientWidth || 600),
    height = width < 500 ? 280 : 380,
    [left, right, top, bottom] = [54, width - 14, 20, height - 38],
    ctx = sheet(canvas, width, height);
  const x = rowScale(found.loss, left, right),
    y = rowScale(found.grad, bottom, top);
  ctx.lineWidth = 1;
  for (const v of x.ticks) rowLine(ctx, [x.place(v), top, x.place(v), bottom], number(v, 3), [x.place(v), bottom + 12], "center");
  for (const v of y.ticks) rowLine(ctx, [left, y.place(v), right, y.place(v)], number(v, 3), [left - 6, y.place(v)], "right");
  ctx.fillStyle = css("--dim");
  ctx.textAlign = "right";
  ctx.fillText(t("report.scatter.x"), right, height - 8);
  ctx.textAlign = "left";
  ctx.fillText(t("report.scatter.y"), 0, 8);
  POINTS = found.rows.map((_, i) =>
    found.loss[i] === null && found.grad[i] === null && found.kind[i] !== 1 ? null : { x: x.place(found.loss[i]), y: y.place(found.grad[i]) },
  );
  // the worst last, over all others
  for (let i = POINTS.length - 1; i >= 0; i--) if (POINTS[i]) rowSign(ctx, POINTS[i], found.kind[i]);
  const own = POINTS[found.rows.indexOf(STATE.row)];
  if (!own) return;
  ctx.strokeStyle = css("--text");
  ctx.lineWidth = 2;
  ctx.beginPath();
  ctx.arc(own.x, own.y, 9, 0, 2 * Math.PI);
  ctx.stroke();
}

function rowLine(ctx, [x0, y0, x1, y1], text, [x, y], side) {
  ctx.strokeStyle = css("--grid");
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
  ctx.fillStyle = css("--dim");
  ctx.textAlign = side;
  ctx.fillText(text, x, y);
}

function rowSign(ctx, { x, y }, kind) {
  ctx.fillStyle = ctx.strokeStyle = css(ROW_KINDS[kind].colour);
  ctx.beginPath();
  if (kind === 0) ctx.arc(x, y, 2, 0, 2 * Math.PI);
  else if (kind === 2) [[0, -5], [5, 4], [-5, 4]].forEach(([dx, dy]) => ctx.lineTo(x + dx, y + dy));
  else if (kind === 3) ctx.rect(x - 4, y - 4, 8, 8);
  else if (kind === 4) [[0, -6], [5, 0], [0, 6], [-5, 0]].forEach(([dx, dy]) => ctx.lineTo(x + dx, y + dy));
  else {
    for (const way of [-1, 1]) {
      ctx.moveTo(x - 4, y - 4 * way);
      ctx.lineTo(x + 4, y + 4 * way);
    }
    ctx.lineWidth = 2;
    ctx.stroke();
    return;
  }
  ctx.fill();
}

function nearestRow(event) {
  const box = event.currentTarget.getBoundingClientRect(),
    [x, y] = [event.clientX - box.left, event.clientY - box.top];
  let best = -1,
    least = Infinity;
  POINTS.forEach((point, i) => {
    const far = point ? (point.x - x) ** 2 + (point.y - y) ** 2 : Infinity;
    if (far < least) [best, least] = [i, far];
  });
  return best;
}

function walkRows(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const last = DATA.rows.rows.length - 1,
    at = DATA.rows.rows.indexOf(STATE.row);
  const places = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last };
  if (event.key !== "Enter" && !(event.key in places)) return;
  event.preventDefault();
  if (event.key === "Enter") toggleRows();
  else pickRow(Math.max(0, Math.min(last, places[event.key])));
}

function pickRow(i) {
  if (i < 0) return;
  remember({ row: DATA.rows.rows[i] });
  paintRows();
  readRow(i);
}

function placeOf(i) {
  const { file, lines } = DATA.rows;
  if (!file) return "–";
  return lines && lines[i] !== null ? t("report.scatter.line", { file, line: lines[i] }) : file;
}

const rowKind = (i) => t(ROW_KINDS[DATA.rows.kind[i]].key);
const percent = (v) => (v === null ? "–" : number(100 * v, 3) + "%");

function readRow(i) {
  const found = DATA.rows,
    name = t("report.scatter.row_n", { row: found.rows[i] }),
    kind = found.kind[i] ? " · " + rowKind(i) : "";
  document.getElementById("row-said").textContent =
    `${name}${kind} · ${t("report.scatter.x")} ${number(found.loss[i])} · ${t("report.scatter.gradient")} ${number(found.grad[i])}`;
  const course = t(ROW_COURSES[found.course[i]]),
    text = found.texts ? found.texts[found.rows[i]] : null,
    like = found.like[i];
  const rows = [
    ["report.scatter.place", placeOf(i)],
    ["report.scatter.tokens", number(found.n[i]) + (found.cut[i] ? ` (${t("report.scatter.cut")})` : "")],
    ["report.scatter.course", `${course}: ${number(found.first[i])} → ${number(found.last[i])} (${t("report.scatter.times", { n: found.seen[i] })})`],
    ["report.scatter.loss_z", number(found.loss_z[i], 3)],
    ["report.scatter.grad_excess_z", number(found.grad_excess_z[i], 3)],
    ["report.scatter.share", t("report.scatter.shares", { share: percent(found.share[i]), tokens: percent(found.token_share[i]) })],
    ...(like ? [["report.scatter.like", t("report.scatter.copy", { row: like[0], share: percent(like[1]) })]] : []),
  ];
  document
    .getElementById("row-read")
    .replaceChildren(
      text ? el("blockquote", {}, text) : "",
      pairs(rows.map(([key, value]) => [t(key), value])),
    );
}

function toggleRows() {
  remember({ rowsTable: !STATE.rowsTable });
  fillRows();
}

function fillRows() {
  const found = DATA.rows,
    place = document.getElementById("rows-values");
  document.getElementById("rows-table").setAttribute("aria-pressed", String(Boolean(STATE.rowsTable)));
  if (!STATE.rowsTable) {
    place.replaceChildren();
    return;
  }
  const heads = [
    t("report.scatter.row"),
    t("report.scatter.what"),
    t("report.scatter.x"),
    t("report.scatter.gradient"),
    t("report.scatter.loss_z"),
    t("report.scatter.grad_excess_z"),
  ];
  const cells = (i) => [found.kind[i] ? rowKind(i) : "–", ...["loss", "grad", "loss_z", "grad_excess_z"].map((name) => number(found[name][i]))];
  const table = el(
    "table",
    { class: "values" },
    el("caption", {}, t("report.scatter.worst", { n: number(Math.min(ROW_TABLE, found.rows.length)) })),
    el("thead", {}, el("tr", {}, ...heads.map((name) => el("th", { scope: "col" }, name)))),
    el(
      "tbody",
      {},
      ...found.rows
        .slice(0, ROW_TABLE)
        .map((row, i) => el("tr", {}, el("th", { scope: "row" }, String(row)), ...cells(i).map((text) => el("td", {}, text)))),
    ),
  );
  place.replaceChildren(scrolling(`${t("report.scatter")}: ${t("page.table")}`, table));
}
