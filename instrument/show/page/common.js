"use strict";
// What all pages share: text without markup, numbers as people write them, and a place that a reload does not lose.
const DATA = JSON.parse(document.getElementById("data").textContent);
const STATE_KEY = "lora-train " + document.title;
const STATE = Object.assign({ lang: "", scroll: 0 }, remembered());
const LANGUAGE = () => STATE.lang || ((navigator.language || "").toLowerCase().startsWith("ko") ? "ko" : "en");
// A sentence of the catalogue with its placeholders filled.
const t = (key, values = {}) =>
  Object.entries(values).reduce(
    (text, [name, value]) => text.replaceAll(`{${name}}`, value),
    DATA.text[LANGUAGE()][key],
  );
// What Python wrote in every language, or one text for all.
const said = (text) => (text && typeof text === "object" ? text[LANGUAGE()] : text);
const DARK = matchMedia("(prefers-color-scheme: dark)");
const PAPER = matchMedia("print");
const MOVES = matchMedia("(prefers-reduced-motion: no-preference)");

function remembered() {
  try {
    return JSON.parse(sessionStorage.getItem(STATE_KEY)) || {};
  } catch (_) {
    return {};
  }
}

function remember(change) {
  Object.assign(STATE, change);
  try {
    sessionStorage.setItem(STATE_KEY, JSON.stringify(STATE));
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
  for (const item of content.flat(2)) if (item !== null && item !== undefined) element.append(item);
  return element;
}

// A key of the configuration that wraps behind its dots and underscores.
function breakable(key) {
  return key.split(/(?<=[._])/).flatMap((part) => [part, el("wbr")]);
}

const colours = new Map();
function css(name) {
  if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return colours.get(name);
}

function swatch(colour) {
  const place = el("i", { class: "swatch" });
  place.style.background = colour;
  return place;
}

function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en-US");
  if (size < 1e-3 || size >= 1e15)
    return value
      .toExponential(digits - 1)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  return value.toLocaleString("en-US", {
    maximumFractionDigits: Math.max(0, digits - 1 - Math.floor(Math.log10(size))),
  });
}

// Of an axis: no more digits than tell its marks apart.
const tick = (value) =>
  value === null
    ? ""
    : Math.abs(value) >= 1e5 && Math.abs(value) < 1e15
      ? Intl.NumberFormat("en-US", { notation: "compact" }).format(value)
      : number(value, 5);

const when = (milliseconds) =>
  new Date(milliseconds).toLocaleString(LANGUAGE(), { dateStyle: "medium", timeStyle: "short" });

function section(id, title, ...content) {
  const place = el("section", { id, "aria-label": title }, el("h2", {}, title), ...content);
  document.getElementById("main").append(place);
  return place;
}

function choice(key, options, label, changed) {
  const values = options.map(([value]) => value);
  if (!values.includes(STATE[key])) STATE[key] = values[0];
  const select = el(
    "select",
    {
      id: key,
      "aria-label": label,
      onchange: () => {
        remember({ [key]: select.value });
        changed();
      },
    },
    ...options.map(([value, name]) => el("option", { value, selected: STATE[key] === value }, name)),
  );
  return el("label", {}, el("span", {}, label), select);
}

// A slider of whole numbers that keeps its value over a reload.
function slider(key, label, min, max, changed, shown = String) {
  const value = Math.min(max, Math.max(min, STATE[key] ?? min));
  const text = el("output", {}, shown(value));
  const input = el("input", {
    type: "range",
    min,
    max,
    value,
    id: key,
    oninput: () => {
      text.textContent = shown(Number(input.value));
      remember({ [key]: Number(input.value) });
      changed();
    },
  });
  STATE[key] = value;
  return el("label", {}, el("span", {}, label), input, text);
}

// Draws the page again from DATA; what is open, focused and looked at stays so.
let rebuild = () => {};

function languageSwitch() {
  return el(
    "span",
    { class: "languages" },
    ...[
      ["en", "English"],
      ["ko", "한국어"],
    ].map(([lang, name]) =>
      el(
        "button",
        {
          id: "lang-" + lang,
          lang,
          "aria-pressed": String(LANGUAGE() === lang),
          onclick: () => {
            remember({ lang });
            rebuild();
          },
        },
        name,
      ),
    ),
  );
}

// How it stands, in one line: what is known for sure, and the one judgement.
const statusLine = (verdict, state, word, topic, sentence) =>
  el(
    "div",
    { class: "status " + (verdict || "note") },
    state ? el("p", { class: "state" }, ...state) : null,
    sentence
      ? el(
          "p",
          { class: "verdict" },
          el("span", { class: "word" }, word.trim()),
          el("span", { class: "dim" }, topic ? ` ${topic} ` : " "),
          sentence,
        )
      : null,
  );

const tileRow = (tiles) =>
  el(
    "dl",
    { class: "tiles" },
    ...tiles.map((tile) =>
      el(
        "div",
        { class: tile.verdict },
        el("dt", {}, said(tile.label)),
        el("dd", {}, said(tile.value)),
        tile.note ? el("dd", { class: "note" }, said(tile.note)) : null,
      ),
    ),
  );

function finding(found, topic) {
  return el(
    "div",
    { class: "finding " + found.verdict },
    el("span", {}, el("span", { class: "word" }, found.word), topic ? el("span", { class: "dim" }, " " + topic) : null),
    el(
      "div",
      {},
      el("p", {}, found.sentence),
      found.hint ? el("p", { class: "hint" }, el("b", {}, t("page.change")), " ", found.hint) : null,
    ),
  );
}

const topics = (groups) =>
  groups.map((group) =>
    el(
      "div",
      { class: "topic" },
      el("h3", {}, group.topic, " ", el("span", { class: "dim" }, group.what)),
      ...group.findings.map((found) => finding(found)),
    ),
  );

function scrolling(label, table) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
}

// Centred mean over `width` steps; what is not finite stays a gap.
function smooth(values, width) {
  if (width < 2) return values;
  const half = Math.floor(width / 2);
  return values.map((value, i) => {
    if (value === null) return null;
    const own = values.slice(Math.max(0, i - half), i + half + 1).filter((v) => v !== null);
    return own.reduce((a, b) => a + b, 0) / own.length;
  });
}

const pairs = (rows) =>
  el(
    "table",
    { class: "pairs" },
    el("tbody", {}, ...rows.map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, value)))),
  );

function contents(links, ...controls) {
  document.getElementById("contents").setAttribute("aria-label", t("page.contents"));
  document
    .getElementById("contents")
    .replaceChildren(
      el("div", { class: "links" }, ...links.map(([id, name]) => el("a", { href: "#" + id }, name))),
      el("div", { class: "controls" }, ...controls),
    );
}

function start(build) {
  rebuild = () => {
    const { id: focus, selectionStart: caret } = document.activeElement || {},
      open = new Set([...document.querySelectorAll("details[open]")].map((one) => one.id)),
      scroll = window.scrollY;
    document.documentElement.lang = LANGUAGE();
    forgetCharts();
    for (const id of ["top", "contents", "main"]) document.getElementById(id).replaceChildren();
    build();
    for (const one of document.querySelectorAll("details")) one.open = open.has(one.id);
    window.scrollTo(0, scroll);
    drawSeen();
    const focused = focus && document.getElementById(focus);
    if (focused) focused.focus({ preventScroll: true });
    if (focused && caret) focused.setSelectionRange(caret, caret);
  };
  rebuild();
  window.scrollTo(0, STATE.scroll || 0);
  addEventListener("scroll", () => remember({ scroll: window.scrollY }), { passive: true });
  DARK.addEventListener("change", () => {
    colours.clear();
    rebuild();
    if (PAPER.matches) drawAll(); // paper is light: a dark page changes its scheme after beforeprint
  });
}
