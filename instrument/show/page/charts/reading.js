"use strict";
// How a chart is read: what is said under the pointer, the keys, and the table of its values.
const TABLE_ROWS = 200;

// The point of a line that is nearest to a place between its ends; -1 where there is none.
function nearest(xs, ys, index) {
  let before = index,
    after = index;
  while (before >= 0 && ys[before] === undefined) before--;
  while (after < ys.length && ys[after] === undefined) after++;
  if (before < 0 || after >= ys.length) return -1;
  return xs[index] - xs[before] <= xs[after] - xs[index] ? before : after;
}

// What is said of the place under the cursor: where, each line's value there or nearest to it, and what a mark means.
function told(one, u, index) {
  const spec = one.spec,
    x = u.data[0][index];
  const rows = spec.lines
    .map((line, i) => [line, u.data[i + 1], line.exact ? index : nearest(u.data[0], u.data[i + 1], index)])
    .filter(([line, ys, at]) => at >= 0 && ys[at] !== undefined && !one.look.hidden.has(groupOf(line)))
    .map(([line, ys, at]) => [line, ys[at], at === index ? "" : ` (${spec.axis} ${number(u.data[0][at])})`]);
  return { head: `${spec.axis} ${number(x)}`, rows, marks: marksNear(u, spec.marks || [], u.valToPos(x, "x")) };
}

function point(one, u) {
  const index = u.cursor.idx;
  if (
    index === null ||
    index === undefined ||
    u.cursor.left < 0 ||
    !(one.place.matches(":hover") || one.figure === document.activeElement)
  ) {
    one.tip.hidden = true;
    return;
  }
  const { head, rows, marks } = told(one, u, index);
  const unit = (line) => {
    const own = line.unit || (line.right ? "" : one.spec.unit);
    return own ? " " + own : "";
  };
  one.tip.replaceChildren(
    el("b", {}, head),
    ...rows.map(([line, y, elsewhere]) =>
      el(
        "div",
        {},
        swatch(css(line.colour)),
        line.label + " ",
        el("b", {}, number(y, 5)),
        y === null ? "" : unit(line),
        el("span", { class: "dim" }, elsewhere),
      ),
    ),
    ...marks.map((text) => el("div", { class: "mark" }, text)),
  );
  one.tip.hidden = false;
  const box = one.place.getBoundingClientRect(),
    own = one.tip.getBoundingClientRect(),
    at = u.over.offsetLeft + u.valToPos(u.data[0][index], "x");
  one.tip.style.left = Math.max(0, at + 14 + own.width > box.width ? at - own.width - 14 : at + 14) + "px";
  one.tip.style.top = one.place.offsetTop + 16 + "px";
  if (one.figure === document.activeElement) one.live.textContent = one.tip.innerText.replaceAll("\n", ", ");
}

// To half of what is seen, around the place that was looked at last.
function zoomIn(one) {
  const { cursor, data } = one.plot,
    [from, to] = extentOf(one.spec),
    room = (to - from) / 4;
  const middle = cursor.left >= 0 && cursor.idx != null ? data[0][cursor.idx] : (from + to) / 2;
  zoomTo([middle - room, middle + room]);
}

function keys(one, event) {
  if (event.target !== one.figure || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!one.plot) one.draw();
  const u = one.plot,
    last = u.data[0].length - 1,
    index = u.cursor.idx ?? -1;
  const go = (i) => {
    const x = u.data[0][Math.max(0, Math.min(last, i))];
    u.setCursor({ left: u.valToPos(x, "x"), top: 10 });
  };
  const acts = {
    ArrowLeft: () => go(index < 0 ? last : index - 1),
    ArrowRight: () => go(index + 1),
    Home: () => go(0),
    End: () => go(last),
    "+": () => zoomIn(one),
    "-": () => zoomTo(null),
    Escape: () => zoomTo(null),
    l: () => {
      if (!one.logButton.hidden) one.logButton.click();
    },
    Enter: () => toggleTable(one),
  };
  legendLines(one.spec)
    .slice(0, 9)
    .forEach((line, i) => (acts[i + 1] = () => toggleLine(one, line)));
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
}

function toggleTable(one) {
  one.look.table = !one.table;
  if (!one.table) {
    openTable(one);
    return;
  }
  one.table.remove();
  one.table = null;
}

function openTable(one) {
  one.table = el("div", {});
  one.figure.append(one.table);
  fillTable(one);
}

function fillTable(one) {
  const spec = one.spec,
    data = joined(spec),
    every = Math.ceil(data[0].length / TABLE_ROWS) || 1;
  const rows = data[0].map((_, i) => i).filter((i) => i % every === 0 || i === data[0].length - 1);
  const table = el(
    "table",
    { class: "values" },
    every > 1 ? el("caption", {}, t("page.table.every", { n: every })) : null,
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, spec.axis),
        ...spec.lines.map((line) => el("th", { scope: "col" }, line.label)),
      ),
    ),
    el(
      "tbody",
      {},
      ...rows.map((i) =>
        el("tr", {}, ...data.map((column) => el("td", {}, column[i] === undefined ? "" : number(column[i], 7)))),
      ),
    ),
  );
  const before = one.table.firstChild,
    place = scrolling(`${spec.title}: ${t("page.table")}`, table),
    top = before ? before.scrollTop : 0;
  one.table.replaceChildren(place);
  place.scrollTop = top;
}
