"use strict";
// What the board is made of: text without markup, numbers as people write them, the picture of a loss, one row.
const DATA = JSON.parse(document.getElementById("data").textContent);
const STATE = Object.assign({ lang: "", sort: "date", down: true, find: "", status: "", verdict: "", open: [] }, kept());
const LANGUAGE = () => STATE.lang || ((navigator.language || "").toLowerCase().startsWith("ko") ? "ko" : "en");
const t = (key, values = {}) =>
  Object.entries(values).reduce(
    (text, [name, value]) => text.replaceAll(`{${name}}`, () => value),
    DATA.text[LANGUAGE()][key],
  );
const said = (text) => (text && typeof text === "object" ? text[LANGUAGE()] : text);

function kept() {
  try {
    return JSON.parse(localStorage.getItem("lora-train board")) || {};
  } catch (_) {
    return {};
  }
}

function keep(change) {
  Object.assign(STATE, change);
  try {
    localStorage.setItem("lora-train board", JSON.stringify(STATE));
  } catch (_) {
    /* private windows */
  }
}

// An element; `content` is text or elements, never markup.
function el(tag, attributes, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  for (const item of content.flat(2)) if (item !== null && item !== undefined && item !== "") element.append(item);
  return element;
}

// Making a formatter takes longer than a hundred numbers.
const FORMATS = new Map();
function format(make, lang, options) {
  const key = make.name + lang + JSON.stringify(options);
  if (!FORMATS.has(key)) FORMATS.set(key, new make(lang, options));
  return FORMATS.get(key);
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return format(Intl.NumberFormat, "en-US", {}).format(value);
  if (size < 1e-3 || size >= 1e15)
    return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return format(Intl.NumberFormat, "en-US", { maximumFractionDigits: places }).format(value);
}

function clock(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const all = Math.round(seconds),
    two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(all / 3600)}:${two(Math.floor(all / 60) % 60)}:${two(all % 60)}`;
}

function when(milliseconds) {
  const date = new Date(milliseconds),
    now = new Date(),
    today = now.toDateString() === date.toDateString(),
    short = now.getFullYear() === date.getFullYear() ? { month: "short", day: "numeric" } : { dateStyle: "medium" };
  return format(Intl.DateTimeFormat, LANGUAGE(), today ? { timeStyle: "short" } : short).format(date);
}

// Losses as a line of 110 x 26; where one is not finite the line has a gap and a red tick below, never a 0.
const WIDE = 110,
  HIGH = 26;
function spark([steps, loss]) {
  const svg = (tag, attributes) => {
    const one = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
    return one;
  };
  const real = loss.filter((v) => v !== null).sort((a, b) => a - b),
    low = real[0],
    top = real[Math.floor(0.98 * (real.length - 1))],
    first = steps[0],
    across = steps.at(-1) - first || 1,
    x = (i) => (((steps[i] - first) / across) * WIDE).toFixed(1),
    y = (v) => (2 + (1 - Math.min(1, Math.max(0, (v - low) / (top - low || 1)))) * (HIGH - 4)).toFixed(1);
  const picture = svg("svg", { width: WIDE, height: HIGH, viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" });
  const label = real.length
    ? t("board.page.spark", { first: number(loss.find((v) => v !== null)), last: number(loss.findLast((v) => v !== null)) })
    : t("board.page.no_loss");
  picture.setAttribute("aria-label", label);
  let line = "",
    gaps = "";
  for (let i = 0; i < loss.length; i++) {
    if (loss[i] === null) gaps += `M${x(i)} ${HIGH - 3}v3`;
    else line += (i && loss[i - 1] !== null ? "L" : "M") + `${x(i)} ${y(loss[i])}` + (loss.length === 1 ? "h2" : "");
  }
  if (line) picture.append(svg("path", { class: "spark", d: line }));
  if (gaps) picture.append(svg("path", { class: "gap", d: gaps }));
  return picture;
}

// Keys of words, the gravest or the liveliest first.
const VERDICT_WORDS = {
  wrong: "board.page.verdict.wrong",
  watch: "board.page.verdict.watch",
  undecided: "board.page.verdict.undecided",
  healthy: "board.page.verdict.healthy",
  note: "board.page.verdict.note",
};
const STATUS_WORDS = {
  running: "board.status.running",
  ended: "board.status.ended",
  stopped: "board.status.stopped",
  crashed: "board.status.crashed",
  unfinished: "board.status.unfinished",
};
const COLUMN_WORDS = {
  name: "board.page.column.name",
  state: "board.page.column.state",
  loss: "board.page.column.loss",
  best: "board.page.column.best",
  verdict: "board.page.column.verdict",
  steps: "board.page.column.steps",
  time: "board.page.column.time",
  date: "board.page.column.date",
};
const CHOICE_WORDS = { status: "board.page.status", verdict: "board.page.verdict", sort: "board.page.sort" };
const VERDICTS = Object.keys(VERDICT_WORDS);
const STATUSES = Object.keys(STATUS_WORDS);
// A topic's word is one of the run page's: its keys stand there.
const TOPIC_WORDS = "page.topic.";
const topicWord = ({ topic }) => {
  const key = TOPIC_WORDS + topic;
  return t(key);
};
// Of each column: what a row is sorted by; nothing known comes last either way.
const COLUMNS = {
  name: (row) => row.name.toLowerCase(),
  state: (row) => STATUSES.indexOf(row.status),
  loss: (row) => row.loss,
  best: (row) => row.best && row.best.value,
  verdict: (row) => row.verdict && VERDICTS.indexOf(row.verdict.verdict),
  steps: (row) => row.step,
  time: (row) => row.seconds,
  date: (row) => row.date,
};
const CELLS = {
  name: (row) => [
    row.kind === "study" ? fold(row) : null,
    el("a", { href: `${row.kind}/${row.id}/` }, row.name),
    row.kind === "study" && row.trials !== undefined
      ? el("span", { class: "dim" }, " " + t("board.page.trials", { ended: row.ended, n: row.trials }))
      : null,
    el(
      "div",
      { class: "tags" },
      ...row.tags.map((tag) =>
        el("button", { class: "tag", "aria-label": t("board.page.only_tag", { tag }), onclick: () => find(tag) }, tag),
      ),
    ),
    row.note ? el("p", { class: "note", title: row.note }, row.note) : null,
  ],
  state: (row) =>
    row.status === "unfinished" && row.pending && !row.spark
      ? ["…"] // not read yet
      : [el("span", { class: "state " + row.status }, t(STATUS_WORDS[row.status]))],
  loss: (row) =>
    row.spark && row.spark[0].length
      ? [el("div", { class: "loss" }, spark(row.spark), el("span", {}, number(row.loss)))]
      : [row.loss === undefined ? "" : number(row.loss)],
  best: (row) =>
    row.best
      ? [
          number(row.best.value),
          el(
            "div",
            { class: "dim" },
            [
              row.best.name === "eval_loss" ? "" : row.best.name.replace(/^eval_/, "") + " ",
              row.best.step === null ? "" : t("board.page.at_step", { step: number(row.best.step) }),
            ].join(""),
          ),
        ]
      : ["–"],
  verdict: (row) =>
    row.error
      ? [el("span", { class: "dim" }, said(row.error))]
      : row.verdict
        ? [
            el("span", { class: "word " + row.verdict.verdict }, t(VERDICT_WORDS[row.verdict.verdict])),
            row.verdict.topic === "overall" ? "" : el("span", { class: "dim" }, " " + topicWord(row.verdict)),
            el("div", { class: "says", title: said(row.verdict.sentence) }, said(row.verdict.sentence)),
          ]
        : [el("span", { class: "dim" }, row.kind === "run" && row.pending ? t("board.page.pending") : "–")],
  steps: (row) => [
    row.kind === "study"
      ? "–"
      : row.planned && row.planned !== row.step
        ? t("board.page.of", { step: number(row.step), planned: number(row.planned) })
        : number(row.step),
    row.kind === "study" ? null : el("span", { class: "narrow" }, " " + t(COLUMN_WORDS.steps)),
  ],
  time: (row) => [clock(row.seconds)],
  date: (row) => [el("span", { title: format(Intl.DateTimeFormat, LANGUAGE(), { dateStyle: "medium", timeStyle: "short" }).format(row.date) }, when(row.date))],
};

function fold(row) {
  const open = STATE.open.includes(row.id);
  return el(
    "button",
    {
      class: "fold",
      "aria-expanded": String(open),
      "aria-label": t("board.page.show_trials", { name: row.name }),
      onclick: () => {
        keep({ open: open ? STATE.open.filter((id) => id !== row.id) : [...STATE.open, row.id] });
        show(row);
        arrange();
      },
    },
    open ? "▾" : "▸",
  );
}
