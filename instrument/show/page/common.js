"use strict";
// What both pages share: text without markup, charts in the page's colours, and a place that a reload does not lose.
const DATA = JSON.parse(document.getElementById("data").textContent);
const STATE_KEY = "lora-train " + document.title;
const STATE = Object.assign({ lang: "", scroll: 0 }, remembered());
const LANGUAGE = () => STATE.lang || ((navigator.language || "").toLowerCase().startsWith("ko") ? "ko" : "en");
const t = (key) => DATA.text[LANGUAGE()][key];
const CHARTS = [];
// Charts are drawn when they come near the screen, and once plotly is there: the text does not wait for either.
const NEAR = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const found = CHARTS.find((one) => one.place === entry.target);
    if (entry.isIntersecting && found && !found.near) { found.near = true; found.draw(); }
  }
}, { rootMargin: "600px" });

function remembered() {
  try { return JSON.parse(sessionStorage.getItem(STATE_KEY)) || {}; } catch (_) { return {}; }
}

function remember(change) {
  Object.assign(STATE, change);
  try { sessionStorage.setItem(STATE_KEY, JSON.stringify(STATE)); } catch (_) { /* private windows */ }
}

// An element; `content` is text or elements, never markup.
function el(tag, attributes, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const item of content.flat()) if (item !== null && item !== undefined) element.append(item);
  return element;
}

// plotly takes some tags in its labels for markup.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const short = (text, most = 60) => { const s = String(text); return s.length > most ? "…" + s.slice(1 - most) : s; };
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

// `after` is called whenever it has been drawn.
function chart(parent, id, traces, layout, className = "chart", after = () => {}) {
  const place = el("div", { id, class: className });
  parent.append(place);
  const draw = () => {
    if (!window.Plotly) return;
    const colour = css("--text"), line = css("--line");
    const axis = { gridcolor: line, zerolinecolor: line, automargin: true };
    const given = typeof layout === "function" ? layout() : layout;
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour, family: "inherit" },
      margin: { l: 56, r: 16, t: 28, b: 40 }, hovermode: "x unified", showlegend: true,
      legend: { orientation: "h", y: 1.12 }, hoverlabel: { namelength: -1 },
    };
    const full = Object.assign(base, given);
    for (const name of ["xaxis", "yaxis", "yaxis2"]) if (name !== "yaxis2" || given.yaxis2) full[name] = Object.assign({}, axis, given[name] || {});
    Plotly.react(place, typeof traces === "function" ? traces() : traces, full, { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["sendDataToCloud"] });
    after();
  };
  CHARTS.push({ place, draw, near: false });
  NEAR.observe(place);
  return place;
}

function drawAll() { for (const one of CHARTS) if (one.near) one.draw(); }

// plotly takes a second to start: it does so after the text is on the screen.
function startPlotly() {
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.body.append(script);
  drawAll();
}

function section(title, ...content) {
  const place = el("section", {}, el("h2", {}, title), ...content);
  document.getElementById("main").append(place);
  return place;
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

// A slider of whole numbers that keeps its value over a reload.
function slider(key, label, min, max, redraw) {
  const value = Math.min(max, Math.max(min, STATE[key] || min));
  const shown = el("span", {}, String(value));
  const input = el("input", {
    type: "range", min, max, value, id: key, "aria-label": label,
    oninput: () => { shown.textContent = input.value; remember({ [key]: Number(input.value) }); redraw(); },
  });
  STATE[key] = value;
  return el("label", {}, label, input, shown);
}

function languageSwitch(build) {
  return el("span", { class: "controls" }, ...[["en", "English"], ["ko", "한국어"]].map(([lang, name]) =>
    el("button", { id: "lang-" + lang, "aria-pressed": String(LANGUAGE() === lang), onclick: () => { remember({ lang }); build(); } }, name)));
}

function findings(groups) {
  return groups.map((group) => el("div", { class: "topic" },
    el("h3", {}, group.topic, " ", el("span", { class: "dim" }, group.what)),
    ...group.findings.map((found) => el("div", { class: "finding " + found.verdict },
      el("span", { class: "word" }, found.word), el("p", {}, found.sentence),
      found.hint ? el("p", { class: "hint" }, t("page.change"), " ", found.hint) : null))));
}

const pairs = (rows) => el("table", {}, ...rows.map(([key, value]) => el("tr", {}, el("td", {}, key), el("td", {}, value))));

function start(build) {
  const again = () => {
    document.documentElement.lang = LANGUAGE();
    CHARTS.length = 0;
    NEAR.disconnect();
    document.getElementById("top").replaceChildren();
    document.getElementById("main").replaceChildren();
    build(again);
    drawAll();
  };
  again();
  window.scrollTo(0, STATE.scroll || 0);
  requestAnimationFrame(() => setTimeout(startPlotly, 0));
  addEventListener("beforeprint", () => { for (const one of CHARTS) one.near = true; drawAll(); });
  addEventListener("scroll", () => remember({ scroll: window.scrollY }), { passive: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  if (DATA.following) setTimeout(() => location.reload(), 5000);
}
